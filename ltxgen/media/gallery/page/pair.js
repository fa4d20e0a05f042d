// Two runs beside each other, one wiped over the other, or their difference.
const MODES = { side: "Side by side", wipe: "Wipe", difference: "Difference" };
const pair = { a: null, b: null, mode: "side", gain: 4, wipe: 50, videos: [], frames: [-1, -1], onClock: () => {} };
clock.listeners.push(() => pair.onClock());

const isPairOpen = () => !document.getElementById("pair").hidden;

function choose(letter, run) {
  pair[letter.toLowerCase()] = run;
  markPicks();
  if (pair.a && pair.b) openPair();
}

function openPair(mode = pair.mode) {
  const able = RUNS.filter((run) => run.video);
  if (able.length < 2) return;
  pair.a ??= able.find((run) => run !== pair.b);
  pair.b ??= able.find((run) => run !== pair.a);
  pair.mode = mode;
  document.getElementById("grid").hidden = true;
  document.getElementById("pair").hidden = false;
  document.body.classList.add("pairing");
  drawPair();
}

function closePair() {
  for (const video of pair.videos) clock.remove(video);
  pair.videos = [];
  document.getElementById("pair").replaceChildren();
  document.getElementById("pair").hidden = true;
  document.getElementById("grid").hidden = false;
  document.body.classList.remove("pairing");
  [pair.a, pair.b] = [null, null];
  markPicks();
  drawGrid();
}

function drawPair() {
  for (const video of pair.videos) clock.remove(video);
  sound.hovered = sound.pinned = null;
  pair.videos = [pair.a, pair.b].map(makeVideo);
  pair.videos.forEach(watchFrames);
  document.getElementById("pair").replaceChildren(pairBar(), stageOf(pair.mode), factsOfPair());
  pair.videos.forEach((video, place) => {
    const run = [pair.a, pair.b][place];
    video.src = run.video.address;
    video.preload = "auto";
    video.addEventListener("click", () => pair.mode !== "wipe" && clock.toggle());
    video.addEventListener("pointerenter", () => sound.hover(video));
    video.addEventListener("pointerleave", () => sound.hover(null));
    clock.add(video, run);
  });
  markPicks();
  clock.seek(clock.time);
}

function pairBar() {
  const able = RUNS.filter((run) => run.video);
  const chooser = (letter) => {
    const select = el("select", { "aria-label": `Run ${letter}`, onchange: (event) => {
      pair[letter.toLowerCase()] = RUNS[Number(event.target.value)];
      drawPair();
    } }, ...able.map((run) => el("option", { value: run.index }, nameOf(run))));
    select.value = pair[letter.toLowerCase()].index;
    return el("label.chooser", {}, el("b." + letter.toLowerCase(), {}, letter), select);
  };
  const modes = Object.entries(MODES).map(([mode, label]) =>
    el("button", { type: "button", role: "tab", "data-mode": mode, "aria-selected": String(mode === pair.mode), title: `Key ${label[0]}`, onclick: () => openPair(mode) }, label));
  const swap = el("button.plain", { type: "button", "aria-label": "Swap A and B", title: "Swap A and B (X)", onclick: swapPair }, icon("swap"));
  const close = el("button.plain", { type: "button", "aria-label": "Back to all runs", title: "Back to all runs (Esc)", onclick: closePair }, icon("close"));
  return el("div.pair-bar", {}, chooser("A"), swap, chooser("B"), el("div.tabs", { role: "tablist", "aria-label": "How to compare" }, ...modes), el("span.spring"), close);
}

function swapPair() {
  [pair.a, pair.b] = [pair.b, pair.a];
  drawPair();
}

function stageOf(mode) {
  const [first, second] = pair.videos;
  const shape = `${pair.a.video.width} / ${pair.a.video.height}`;
  if (mode === "side") {
    const figure = (video, run, letter) => el("figure", {}, el("div.screen", {}, video), el("figcaption", {}, el("b." + letter.toLowerCase(), {}, letter), " ", nameOf(run)));
    return el("div.stage.side", {}, figure(first, pair.a, "A"), figure(second, pair.b, "B"));
  }
  const screen = el("div.screen." + mode, {}, first, second);
  screen.style.setProperty("--shape", pair.a.video.width / pair.a.video.height);
  screen.style.aspectRatio = shape;
  const stage = el("div.stage", {}, screen);
  if (mode === "wipe") stage.append(wipeControl(screen, second));
  else stage.append(differenceControl(screen));
  return stage;
}

function wipeControl(screen, upper) {
  const line = el("span.wipe-line");
  const slider = el("input", { type: "range", min: "0", max: "100", step: "0.1", "aria-label": "Where B begins" });
  const set = (value) => {
    pair.wipe = Math.min(100, Math.max(0, value));
    upper.style.clipPath = `inset(0 0 0 ${pair.wipe}%)`;
    line.style.left = `${pair.wipe}%`;
    slider.value = pair.wipe;
  };
  slider.addEventListener("input", () => set(Number(slider.value)));
  const follow = (event) => {
    const box = screen.getBoundingClientRect();
    set(((event.clientX - box.left) / box.width) * 100);
  };
  screen.append(line, el("b.a.tag", {}, "A"), el("b.b.tag", {}, "B"));
  screen.addEventListener("pointerdown", (event) => {
    screen.setPointerCapture(event.pointerId);
    follow(event);
  });
  screen.addEventListener("pointermove", (event) => event.buttons && follow(event));
  set(pair.wipe);
  return el("label.setting", {}, "A", slider, "B");
}

function differenceControl(screen) {
  const { width, height } = pair.a.video;
  const canvas = el("canvas", { width, height, role: "img", "aria-label": "Difference of A and B, brightened" });
  screen.append(canvas);
  const told = el("output", {});
  const slider = el("input", { type: "range", min: "0", max: "6", step: "0.5", "aria-label": "Gain", "aria-valuetext": "" });
  const set = (value) => {
    pair.gain = 2 ** value;
    canvas.style.filter = `brightness(${pair.gain})`;
    told.textContent = `× ${pair.gain < 10 ? Number(pair.gain.toFixed(1)) : Math.round(pair.gain)}`;
    slider.setAttribute("aria-valuetext", told.textContent);
  };
  slider.value = Math.log2(pair.gain);
  slider.addEventListener("input", () => set(Number(slider.value)));
  set(Math.log2(pair.gain));
  return el("label.setting", {}, "|A − B|, gain", slider, told);
}

// Only frames of one number are subtracted: a video that is a frame behind would look like a difference.
function watchFrames(video, place) {
  pair.frames[place] = -1;
  const run = [pair.a, pair.b][place];
  const shown = (time) => {
    if (pair.videos[place] !== video) return; // a frame of a pair that is no longer shown
    pair.frames[place] = Math.floor(time * run.video.fps + 1e-3);
    drawDifference();
  };
  // A callback asked for just after a frame came doesn't tell of it: the end of a seek does, always.
  for (const event of ["seeked", "loadeddata"]) video.addEventListener(event, () => shown(video.currentTime));
  if (video.requestVideoFrameCallback) {
    const next = (_, frame) => {
      shown(frame.mediaTime);
      video.requestVideoFrameCallback(next);
    };
    video.requestVideoFrameCallback(next);
  } else {
    video.addEventListener("timeupdate", () => shown(video.currentTime));
  }
}

function drawDifference() {
  const canvas = document.querySelector("#pair canvas");
  const [first, second] = pair.videos;
  if (!canvas || pair.frames[0] !== pair.frames[1] || pair.frames[0] < 0) return;
  const context = canvas.getContext("2d");
  context.globalCompositeOperation = "copy";
  context.drawImage(first, 0, 0, canvas.width, canvas.height);
  context.globalCompositeOperation = "difference";
  context.drawImage(second, 0, 0, canvas.width, canvas.height);
  canvas.dataset.frame = pair.frames[0];
}

function factsOfPair() {
  const facts = el("div.facts");
  const [a, b] = [pair.a.video, pair.b.video];
  if (a.width !== b.width || a.height !== b.height) facts.append(el("p.note", {}, `Sizes differ: ${a.width}×${a.height} and ${b.width}×${b.height}; B is scaled.`));
  if (a.fps !== b.fps || a.num_frames !== b.num_frames) facts.append(el("p.note", {}, `Lengths differ: ${a.num_frames} frames at ${a.fps}/s and ${b.num_frames} at ${b.fps}/s.`));
  if (DATA.kind === "comparison") {
    if (DATA.psnr.length) facts.append(psnrCurve());
    facts.append(table("Measures, B being the reference", ["", "measure", "value"], DATA.measures));
    if (DATA.differences.length) facts.append(table("Where the recipes differ", ["", "A", "B"], DATA.differences));
  } else {
    const rows = PARAMETERS.filter(({ key }) => valueOf(pair.a, key) !== valueOf(pair.b, key)).map(({ key }) => [key, valueOf(pair.a, key), valueOf(pair.b, key)]);
    if (rows.length) facts.append(table("What differs", ["", "A", "B"], rows));
  }
  return facts;
}

function table(title, heads, rows) {
  return el("div.scrolled", {}, el("table.plain", {}, el("caption", {}, title),
    el("thead", {}, el("tr", {}, ...heads.map((head) => (head ? el("th", { scope: "col" }, head) : el("td"))))),
    el("tbody", {}, ...rows.map(([name, ...cells]) => el("tr", {}, el("th", { scope: "row" }, name), ...cells.map((cell) => el("td", {}, cell)))))));
}

function psnrCurve() {
  const known = DATA.psnr.filter((value) => value != null);
  const [low, high] = known.length ? [Math.floor(Math.min(...known) - 1), Math.ceil(Math.max(...known) + 1)] : [0, 1];
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const count = DATA.psnr.length;
  const points = DATA.psnr.map((value, frame) => `${((frame + 0.5) / count) * 1000},${value == null ? 0 : 100 - ((value - low) / (high - low)) * 96}`);
  const draw = (name, attributes) => {
    const shape = document.createElementNS(space, name);
    for (const [key, value] of Object.entries(attributes)) shape.setAttribute(key, value);
    svg.append(shape);
    return shape;
  };
  svg.setAttribute("viewBox", "0 0 1000 100");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", known.length ? `PSNR of each frame, from ${Math.min(...known)} to ${Math.max(...known)} dB` : "All frames are equal");
  for (const part of [0, 0.5, 1]) draw("line", { x1: 0, x2: 1000, y1: 4 + part * 96, y2: 4 + part * 96, class: "rule" });
  draw("polyline", { points: points.join(" "), class: "curve" });
  const head = draw("line", { y1: 0, y2: 100, class: "head" });
  const told = el("output.reading", {});
  pair.onClock = () => {
    const frame = Math.min(count - 1, clock.frame);
    head.setAttribute("x1", ((frame + 0.5) / count) * 1000);
    head.setAttribute("x2", ((frame + 0.5) / count) * 1000);
    told.textContent = `frame ${frame}: ${DATA.psnr[frame] == null ? "equal" : DATA.psnr[frame].toFixed(2) + " dB"}`;
  };
  const seek = (event) => {
    const box = svg.getBoundingClientRect();
    clock.pause();
    clock.seek((Math.min(count - 1, Math.floor(((event.clientX - box.left) / box.width) * count)) + 0.5) / clock.fps);
  };
  svg.addEventListener("pointerdown", seek);
  svg.addEventListener("pointermove", (event) => event.buttons && seek(event));
  return el("figure.psnr", {}, el("figcaption", {}, el("span", {}, "PSNR of each frame"), told),
    el("div.plot", {}, el("div.scale", { "aria-hidden": "true" }, el("span", {}, known.length ? `${high} dB` : "∞"), el("span", {}, known.length ? `${low} dB` : "")), svg));
}
