// The head of the page, the bar at its foot, the keys, and the state that the address keeps.
const SPEEDS = [0.1, 0.25, 0.5, 1, 1.5, 2];

function drawHead() {
  document.getElementById("title").textContent = DATA.title;
  const count = (status) => RUNS.filter((run) => run.status === status).length;
  const told = DATA.kind === "comparison" ? [DATA.place] : [DATA.place, `${RUNS.length} ${RUNS.length === 1 ? "run" : "runs"}`];
  for (const status of ["failed", "pending"]) if (count(status)) told.push(`${count(status)} ${status}`);
  const shown = RUNS.find((run) => run.video);
  if (shown) told.push(`${shown.video.width}×${shown.video.height}, ${shown.video.num_frames} frames at ${Number(shown.video.fps.toFixed(3))}/s`);
  document.getElementById("summary").textContent = told.join(" · ");
  drawAbout();
  if (DATA.kind === "sweep" && RUNS.length > 1) drawFilters();
}

function drawAbout() {
  const about = [];
  const prompts = new Set(RUNS.map((run) => run.prompt).filter(Boolean));
  if (prompts.size === 1) about.push(el("p.prompt", {}, [...prompts][0]));
  const loads = Object.entries(DATA.loads);
  if (loads.length) about.push(el("p.small", {}, "Loaded: " + loads.map(([name, times]) => `${name} ${times === 1 ? "once" : times + " times"}`).join(", ")));
  if (STAGE_NAMES.length) {
    const key = (name, place) => el("span.key", {}, el(`span.part.stage${place % 8}`), name);
    about.push(el("p.legend", {}, ...STAGE_NAMES.map(key), el("span.key", {}, el("span.part.cache.stage0"), "striped: from the cache")));
  }
  if (!about.length) return;
  document.getElementById("about").hidden = false;
  document.getElementById("about-text").replaceChildren(...about);
}

function drawFilters() {
  const parts = [];
  if (PARAMETERS.length > 1) {
    const axis = (name, label) => {
      const select = el("select", { "aria-label": label, "data-axis": name, onchange: (event) => {
        const other = name === "rows" ? "columns" : "rows";
        if (event.target.value && view[other] === event.target.value) view[other] = view[name];
        view[name] = event.target.value;
        changed();
      } }, el("option", { value: "" }, "none"), ...PARAMETERS.map(({ key, label: short }) => el("option", { value: key }, short)));
      return el("label.axis-choice", {}, label, select);
    };
    parts.push(el("div.axes", {}, axis("rows", "Rows"), axis("columns", "Columns")));
  }
  for (const parameter of PARAMETERS) {
    const chips = parameter.values.map((value) => el("button.chip", { type: "button", "data-value": value, title: `${parameter.key} = ${value}`, onclick: () => {
      const hidden = view.hidden.get(parameter.key);
      hidden.has(value) ? hidden.delete(value) : hidden.add(value);
      changed();
    } }, value));
    parts.push(el("div.chips", { role: "group", "aria-label": parameter.key, "data-key": parameter.key }, el("span.label", { title: parameter.key }, parameter.label), ...chips));
  }
  const search = el("input", { type: "search", id: "search", placeholder: "Filter…", "aria-label": "Filter runs by text", title: "Key /", oninput: (event) => {
    view.text = event.target.value;
    changed();
  } });
  parts.push(search, el("output.matches", { id: "matches" }));
  document.getElementById("filters").replaceChildren(...parts);
}

function showFilters() {
  for (const select of document.querySelectorAll("[data-axis]")) select.value = view[select.dataset.axis];
  for (const chip of document.querySelectorAll(".chip")) {
    chip.setAttribute("aria-pressed", String(!view.hidden.get(chip.parentElement.dataset.key).has(chip.dataset.value)));
  }
  const search = document.getElementById("search");
  if (search && search.value !== view.text) search.value = view.text;
  const matches = document.getElementById("matches");
  if (matches) matches.textContent = wantedRuns().length === RUNS.length ? "" : `${wantedRuns().length} of ${RUNS.length}`;
  document.documentElement.style.setProperty("--card", view.size ? `${view.size}px` : "0px");
  document.body.classList.toggle("sized", view.size > 0);
}

function changed() {
  showFilters();
  drawGrid();
  keepState();
}

function drawTransport() {
  const button = (name, label, key, act) => el("button", { type: "button", "aria-label": label, title: `${label} (${key})`, onclick: act }, icon(name));
  const play = button("play", "Play", "space", () => clock.toggle());
  play.id = "play";
  const slider = el("input", { type: "range", id: "scrub", min: "0", max: "1", step: "any", value: "0", "aria-label": "Time" });
  slider.addEventListener("input", () => {
    clock.playing = false; // not pause(), which would put the slider back first
    clock.seek(Number(slider.value) * clock.duration);
  });
  const time = el("output", { id: "time" });
  const speed = el("select", { id: "speed", "aria-label": "Speed", title: "Speed ([ and ])", onchange: () => setSpeed(Number(speed.value)) },
    ...SPEEDS.map((value) => el("option", { value }, `${value}×`)));
  speed.value = "1";
  const loop = button("loop", "Loop", "L", () => setLoop(!clock.loop));
  loop.id = "loop";
  const audible = button("sound", "Sound on hover", "M", () => setSound(!sound.on));
  audible.id = "sound";
  const strip = el("select", { id: "strip", "aria-label": "Picture of the sound", title: "Picture of the sound (V)", onchange: () => setStrip(strip.value) },
    el("option", { value: "waveform" }, "waveform"), el("option", { value: "spectrogram" }, "spectrogram"), el("option", { value: "none" }, "no sound picture"));
  const size = el("input", { type: "range", id: "size", min: "0", max: "640", step: "20", value: "0", "aria-label": "Size of the videos (0 fits the window)", title: "Size (− and +)" });
  size.addEventListener("input", () => setSize(Number(size.value)));
  const compare = el("button.words", { type: "button", id: "compare", title: "Two runs beside each other (C)", onclick: () => (isPairOpen() ? closePair() : openPair()) }, "Compare");
  const help = el("button.words", { type: "button", "aria-label": "Keyboard shortcuts", title: "Keyboard shortcuts (?)", onclick: showHelp }, "?");
  const bar = document.getElementById("transport");
  bar.append(button("back", "Previous frame", "←", () => clock.step(-1)), play, button("forward", "Next frame", "→", () => clock.step(1)), slider, time,
    el("span.extras", {}, speed, loop, audible, strip, el("span.size", {}, size), compare, help));
  if (RUNS.filter((run) => run.video).length < 2) compare.hidden = true;
  let state = "";
  clock.listeners.push(() => {
    const { duration, frame, fps } = clock;
    slider.value = duration ? clock.time / duration : 0;
    const frames = Math.round(duration * fps);
    time.textContent = `${clock.time.toFixed(2)} s · ${Math.min(frame, Math.max(0, frames - 1))}/${Math.max(0, frames - 1)}`;
    slider.setAttribute("aria-valuetext", `${clock.time.toFixed(2)} seconds, frame ${frame}`);
    if (state === String(clock.playing)) return;
    state = String(clock.playing);
    play.replaceChildren(icon(clock.playing ? "pause" : "play"));
    play.setAttribute("aria-label", clock.playing ? "Pause" : "Play");
  });
}

function setSpeed(value) {
  clock.rate = value;
  document.getElementById("speed").value = String(value);
  clock.show();
}
function nextSpeed(direction) {
  setSpeed(SPEEDS[Math.min(SPEEDS.length - 1, Math.max(0, SPEEDS.indexOf(clock.rate) + direction))]);
}
function setLoop(on) {
  clock.loop = on;
  document.getElementById("loop").setAttribute("aria-pressed", String(on));
}
function setSound(on) {
  sound.on = on;
  sound.apply();
  const button = document.getElementById("sound");
  button.setAttribute("aria-pressed", String(on));
  button.replaceChildren(icon(on ? "sound" : "mute"));
}
function setStrip(kind) {
  view.strip = kind;
  document.getElementById("strip").value = kind;
  for (const card of cards.values()) card.querySelector(".strip")?.update();
  keepState();
}
function setSize(pixels) {
  view.size = pixels < 120 ? 0 : Math.min(640, pixels);
  document.getElementById("size").value = view.size;
  showFilters();
  keepState();
}

const KEYS = [
  [["Space"], "Play or pause", () => clock.toggle()],
  [["ArrowLeft"], "Previous frame (with Shift: ten)", (event) => clock.step(event.shiftKey ? -10 : -1)],
  [["ArrowRight"], "Next frame (with Shift: ten)", (event) => clock.step(event.shiftKey ? 10 : 1)],
  [["Home"], "To the start", () => clock.seek(0)],
  [["End"], "To the last frame", () => clock.step(Infinity)],
  [["[", "]"], "Slower, faster", (event) => nextSpeed(event.key === "[" ? -1 : 1)],
  [["l"], "Loop", () => setLoop(!clock.loop)],
  [["m"], "Sound on hover", () => setSound(!sound.on)],
  [["v"], "Waveform, spectrogram, none", () => setStrip({ waveform: "spectrogram", spectrogram: "none", none: "waveform" }[view.strip])],
  [["a", "b"], "Take the run under the pointer, or with the focus, as A or B", (event) => pickHere(event.key.toUpperCase())],
  [["c"], "Compare two runs, and back", () => (isPairOpen() ? closePair() : openPair())],
  [["s", "w", "d"], "Side by side, wipe, difference", (event) => openPair({ s: "side", w: "wipe", d: "difference" }[event.key])],
  [["x"], "Swap A and B", () => isPairOpen() && swapPair()],
  [["-", "+"], "Smaller, larger", (event) => setSize((view.size || 280) + (event.key === "-" ? -40 : 40))],
  [["/"], "Filter by text", (event) => focusSearch(event)],
  [["Enter"], "Details of the run with the focus", null],
  [["Escape"], "Back to all runs", () => isPairOpen() && closePair()],
  [["?"], "These keys", () => showHelp()],
];

function pickHere(letter) {
  const card = document.querySelector(".card:hover") ?? document.activeElement?.closest?.(".card");
  if (card?.run.video) choose(letter, card.run);
}

function focusSearch(event) {
  const search = document.getElementById("search");
  if (!search || isPairOpen()) return;
  event.preventDefault();
  search.focus();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const on = event.target;
  if (on.matches("input[type=search]")) {
    if (event.key === "Escape") on.blur();
    return;
  }
  if (on.matches("select")) return;
  if (on.matches("button, summary, a") && ["Enter", " "].includes(event.key)) return;
  if (on.matches("input[type=range]") && on.id !== "scrub" && event.key.startsWith("Arrow")) return;
  const key = event.key === " " ? "Space" : event.key === "=" ? "+" : event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const found = KEYS.find(([keys]) => keys.includes(key));
  if (!found?.[2]) return;
  if (key === "Space" || key.startsWith("Arrow") || key === "Home" || key === "End") event.preventDefault();
  found[2](event);
});

// A button that was pressed with the mouse gives the focus back, so that the space key goes on playing and pausing.
document.addEventListener("click", (event) => {
  if (event.detail > 0 && event.target.closest?.("button")) document.activeElement?.blur();
  sound.apply();
});

function showHelp() {
  const box = document.getElementById("help-box");
  const close = el("button.plain", { type: "button", "aria-label": "Close", onclick: () => box.close() }, icon("close"));
  const spelled = { ArrowLeft: "←", ArrowRight: "→", Escape: "Esc" };
  const lines = KEYS.map(([keys, what]) => el("div", {}, el("dt", {}, ...keys.map((key) => el("kbd", {}, spelled[key] ?? (key.length === 1 ? key.toUpperCase() : key)))), el("dd", {}, what)));
  box.replaceChildren(el("header", {}, el("h2", {}, "Keys"), close), el("dl.keys", {}, ...lines));
  box.showModal();
}
for (const box of document.querySelectorAll("dialog")) {
  box.addEventListener("click", (event) => event.target === box && box.close()); // on what is around it
  box.addEventListener("close", () => box.contains(document.activeElement) && document.activeElement.blur());
}

// In the address, so that a reload or a bookmark shows the same.
function keepState() {
  const kept = new URLSearchParams();
  if (PARAMETERS.length > 1) kept.set("axes", `${view.rows}|${view.columns}`);
  for (const [key, hidden] of view.hidden) for (const value of hidden) kept.append("hide", `${key}=${value}`);
  if (view.text) kept.set("text", view.text);
  if (view.size) kept.set("size", view.size);
  if (view.strip !== "waveform") kept.set("sound", view.strip);
  window.location.replace("#" + kept);
}

function takeState() {
  const kept = new URLSearchParams(window.location.hash.slice(1));
  const [rows, columns] = (kept.get("axes") ?? "").split("|");
  const byLength = [...PARAMETERS].sort((a, b) => b.values.length - a.values.length);
  const [most, next] = byLength;
  if (kept.has("axes")) [view.rows, view.columns] = [rows, columns].map((key) => (parameterOf(key) ? key : ""));
  else if (PARAMETERS.length > 1) [view.rows, view.columns] = [next.key, most.key];
  for (const text of kept.getAll("hide")) {
    const parameter = PARAMETERS.find(({ key }) => text.startsWith(key + "="));
    if (parameter) view.hidden.get(parameter.key).add(text.slice(parameter.key.length + 1));
  }
  view.text = kept.get("text") ?? "";
  view.size = Number(kept.get("size")) || 0;
  if (["waveform", "spectrogram", "none"].includes(kept.get("sound"))) view.strip = kept.get("sound");
}

takeState();
drawHead();
drawTransport();
setLoop(true);
setSound(true);
showFilters();
if (DATA.kind === "comparison" && RUNS.every((run) => run.video)) {
  [pair.a, pair.b] = RUNS;
  openPair();
} else drawGrid();
for (const card of cards.values()) card.querySelector(".strip")?.update();
document.getElementById("strip").value = view.strip;
document.getElementById("size").value = view.size;
clock.show();
