// What there is to see: runs, the parameters in which they differ, and which of them the reader wants.
const DATA = JSON.parse(document.getElementById("data").textContent);
const RUNS = DATA.runs.map((run, index) => ({ ...run, index, values: Object.fromEntries(run.overrides) }));
const PARAMETERS = sweptParameters(RUNS);
const NONE = "—";

const view = {
  rows: "",
  columns: "",
  hidden: new Map(PARAMETERS.map((parameter) => [parameter.key, new Set()])),
  text: "",
  strip: "waveform",
  size: 0, // pixels of a card; 0 fits the window
};

function sweptParameters(runs) {
  const keys = [...new Set(runs.flatMap((run) => run.overrides.map(([key]) => key)))];
  const swept = keys
    .map((key) => ({ key, values: [...new Set(runs.map((run) => run.values[key] ?? "—"))] }))
    .filter((parameter) => parameter.values.length > 1);
  for (const parameter of swept) {
    parameter.label = shortest(parameter.key, swept.map((other) => other.key));
    if (parameter.values.every((value) => value !== "" && Number.isFinite(Number(value)))) {
      parameter.values.sort((a, b) => Number(a) - Number(b));
    }
  }
  return swept;
}

// The last parts of a config path that tell it from the others: `seed`, `refine.steps`.
function shortest(key, others) {
  const parts = key.split(".");
  for (let count = 1; count < parts.length; count++) {
    const end = parts.slice(-count).join(".");
    if (others.filter((other) => other === end || other.endsWith("." + end)).length === 1) return end;
  }
  return key;
}

const valueOf = (run, key) => run.values[key] ?? NONE;
const parameterOf = (key) => PARAMETERS.find((parameter) => parameter.key === key);

function nameOf(run) {
  if (DATA.kind === "comparison") return run.name;
  const values = PARAMETERS.map(({ key, label }) => `${label} ${valueOf(run, key)}`);
  return values.length ? values.join(", ") : `run ${run.name}`;
}

function isWanted(run) {
  for (const [key, hidden] of view.hidden) if (hidden.has(valueOf(run, key))) return false;
  const text = [run.name, run.status, run.prompt ?? "", run.error ?? "", ...run.overrides.map((pair) => pair.join("="))];
  const searched = text.join("\n").toLowerCase();
  return view.text.toLowerCase().split(/\s+/).every((word) => searched.includes(word));
}

const wantedRuns = () => RUNS.filter(isWanted);
const durationOf = (run) => (run.video ? run.video.num_frames / run.video.fps : 0);

// Elements with texts as texts: nothing that a prompt holds becomes markup.
function el(tag, properties = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value != null) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child != null && child !== false));
  return element;
}

const ICONS = {
  play: "M4 2.5v11l9-5.5z",
  pause: "M4 2.5h3v11H4zM9 2.5h3v11H9z",
  back: "M11 3v10L5 8zM3.5 3H5v10H3.5z",
  forward: "M5 3v10l6-5zM11 3h1.5v10H11z",
  loop: "M3 8a5 5 0 0 1 8.6-3.5L13 3v4H9l1.5-1.5A3.4 3.4 0 0 0 4.6 8zM13 8a5 5 0 0 1-8.6 3.5L3 13V9h4l-1.5 1.5A3.4 3.4 0 0 0 11.4 8z",
  sound: "M2 6v4h2.500L8 13V3L4.5 6zM10 5.200a3.5 3.5 0 0 1 0 5.600M11.7 3.200a6 6 0 0 1 0 9.6",
  mute: "M2 6v4h2.500L8 13V3L4.5 6zM10.5 6l4 4M14.5 6l-4 4",
  info: "M8 1.500a6.5 6.5 0 1 0 0 13 6.5 6.5 0 0 0 0-13zM8 7.200v4M8 4.600v.4",
  close: "M3.5 3.500l9 9M12.5 3.500l-9 9",
  swap: "M2.5 5.500h9L9 3M13.5 10.500h-9L7 13",
};

function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("class", ["play", "pause", "back", "forward", "loop"].includes(name) ? "icon solid" : "icon");
  const path = document.createElementNS(space, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

const seconds = (value) => (value >= 100 ? `${Math.round(value)} s` : value >= 10 ? `${value.toFixed(1)} s` : `${value.toFixed(2)} s`);
