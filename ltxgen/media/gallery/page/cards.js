// A card shows one run: its video, its sound, its parameters and where its time went.
const STAGE_NAMES = [...new Set(RUNS.flatMap((run) => run.stages.map((stage) => stage.name)))];
const LONGEST = Math.max(...RUNS.map((run) => run.stages.reduce((sum, stage) => sum + stage.seconds, 0)), 1e-9);
const cards = new Map(RUNS.map((run) => [run, makeCard(run)]));

// Videos read their file while they are near the screen only: fifty decoders at once are too many.
const watcher = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      const run = RUNS[Number(target.dataset.run)];
      if (isIntersecting && !clock.followers.has(target)) {
        if (!target.getAttribute("src")) {
          target.src = run.video.address;
          target.preload = "auto";
        }
        clock.add(target, run);
      } else if (!isIntersecting && clock.followers.has(target)) {
        clock.remove(target);
        target.removeAttribute("src");
        target.load();
      }
    }
  },
  { root: document.getElementById("scroll"), rootMargin: "120px" },
);

function makeVideo(run) {
  const video = el("video", {
    "data-run": run.index,
    poster: run.video.poster,
    preload: "none",
    playsinline: true,
    width: run.video.width,
    height: run.video.height,
    "aria-label": `Video of ${nameOf(run)}`,
  });
  video.muted = true;
  video.disablePictureInPicture = true;
  return video;
}

function makeCard(run) {
  const card = el("article.card", { tabindex: "0", "aria-label": `${nameOf(run)}, ${run.status}` });
  card.classList.add(run.status);
  card.run = run;
  card.append(run.video ? shownVideo(run, card) : missingVideo(run));
  if (run.video?.sound) card.append(soundStrip(run));
  card.append(parameters(run), foot(run));
  card.addEventListener("keydown", (event) => {
    if (event.target === card && event.key === "Enter") showDetails(run);
  });
  return card;
}

function shownVideo(run, card) {
  const video = makeVideo(run);
  card.video = video;
  const frame = el("div.frame", {}, video);
  video.addEventListener("click", () => clock.toggle());
  card.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && sound.hover(video));
  card.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && sound.hover(null));
  card.addEventListener("focusin", () => sound.hover(video));
  card.addEventListener("focusout", () => sound.hover(null));
  const pick = (letter) =>
    el("button.pick", { type: "button", "data-pick": letter, "aria-pressed": "false", "aria-label": `Compare: take as ${letter}`,
      title: `Take as ${letter} (key ${letter})`, onclick: () => choose(letter, run) }, letter);
  frame.append(el("div.over", {}, pick("A"), pick("B")));
  if (run.video.sound) frame.append(el("div.over.right", {}, speaker(run, video)));
  return frame;
}

function speaker(run, video) {
  const button = el("button.pick.speaker", { type: "button", "aria-pressed": "false", "aria-label": `Keep the sound of ${nameOf(run)} on`,
    title: "Keep its sound on" }, icon("sound"));
  button.addEventListener("click", () => {
    sound.pinned = sound.pinned === video ? null : video;
    sound.apply();
    for (const other of document.querySelectorAll(".speaker")) {
      other.setAttribute("aria-pressed", String(other === button && sound.pinned === video));
    }
  });
  return button;
}

function missingVideo(run) {
  const words = { failed: "failed", pending: "not run yet", done: "no video" };
  const box = el("div.frame.missing", {}, el("strong", {}, words[run.status]));
  const why = run.error ?? run.faults.join("\n");
  if (why) box.append(el("pre.error", { tabindex: "0", "aria-label": "What went wrong" }, why));
  const shown = RUNS.find((other) => other.video)?.video;
  box.style.aspectRatio = shown ? `${shown.width} / ${shown.height}` : "16 / 9";
  return box;
}

function soundStrip(run) {
  const picture = el("img", { alt: "", draggable: "false" });
  const head = el("span.playhead");
  const strip = el("div.strip", { "aria-hidden": "true" }, picture, head); // the slider below says the same
  strip.update = () => {
    strip.hidden = view.strip === "none";
    if (!strip.hidden) picture.src = run.video.sound[view.strip];
    strip.classList.toggle("heat", view.strip === "spectrogram");
  };
  strip.update();
  const seek = (event) => {
    const box = strip.getBoundingClientRect();
    clock.seek(((event.clientX - box.left) / box.width) * run.video.sound.seconds);
  };
  strip.addEventListener("pointerdown", (event) => {
    strip.setPointerCapture(event.pointerId);
    clock.pause();
    seek(event);
  });
  strip.addEventListener("pointermove", (event) => event.buttons && seek(event));
  clock.listeners.push(() => {
    head.style.left = `${Math.min(1, clock.time / run.video.sound.seconds) * 100}%`;
  });
  return strip;
}

function parameters(run) {
  const values = el("dl.values");
  for (const { key, label } of PARAMETERS) {
    values.append(el("div", { "data-key": key }, el("dt", { title: key }, label), el("dd", { title: valueOf(run, key) }, valueOf(run, key))));
  }
  if (!PARAMETERS.length) values.append(el("div", {}, el("dt", {}, "run"), el("dd", {}, run.name)));
  return values;
}

function foot(run) {
  const took = run.seconds == null ? "" : seconds(run.seconds);
  const more = el("button.more", { type: "button", "aria-label": `Details of ${nameOf(run)}`, title: "Details (Enter)", onclick: () => showDetails(run) }, icon("info"));
  return el("div.foot", {}, run.stages.length ? timeBar(run, run.stages) : el("span.spring"), el("span.took", {}, took), more);
}

function timeBar(run, stages) {
  const bar = el("span.bar", { role: "img" });
  const told = [];
  for (const stage of stages) {
    const part = el("span.part", { title: `${stage.name}: ${seconds(stage.seconds)}${stage.from === "cache" ? ", from the cache" : ""}` });
    part.classList.add(`stage${STAGE_NAMES.indexOf(stage.name) % 8}`, stage.from);
    part.style.width = `${(stage.seconds / LONGEST) * 100}%`;
    bar.append(part);
    told.push(`${stage.name} ${stage.from === "cache" ? "from the cache" : seconds(stage.seconds)}`);
  }
  bar.setAttribute("aria-label", `Time: ${told.join(", ")}`);
  return bar;
}

function markPicks() {
  for (const [run, card] of cards) {
    for (const button of card.querySelectorAll("[data-pick]")) {
      button.setAttribute("aria-pressed", String(pair[button.dataset.pick.toLowerCase()] === run));
    }
  }
}
