// All that is known of one run.
function showDetails(run) {
  const box = document.getElementById("details-box");
  const close = el("button.plain", { type: "button", "aria-label": "Close", title: "Close (Esc)", onclick: () => box.close() }, icon("close"));
  const parts = [el("header", {}, el("h2", {}, nameOf(run)), close)];
  if (run.error) parts.push(el("pre.error", {}, run.error));
  for (const fault of run.faults) parts.push(el("p.note", {}, fault));
  if (Object.keys(run.links).length) {
    parts.push(el("p.links", {}, ...Object.entries(run.links).map(([name, address]) => el("a", { href: address, target: "_blank", rel: "noopener" }, name))));
  }
  if (run.prompt) parts.push(el("h3", {}, "Prompt"), el("p.prompt", {}, run.prompt));
  if (run.negative) parts.push(el("details", {}, el("summary", {}, "Negative prompt"), el("p.prompt", {}, run.negative)));
  if (run.video?.sound) {
    const { waveform, spectrogram, seconds: length, sample_rate, peak } = run.video.sound;
    parts.push(el("h3", {}, "Sound"),
      el("img.wave", { src: waveform, alt: "Waveform: left channel above, right channel below" }),
      el("img.heat", { src: spectrogram, alt: "Spectrogram: 50 Hz to half the sample rate, in octaves" }),
      el("p.small", {}, `${seconds(length)}, ${sample_rate} Hz, peak ${peak}`));
  }
  if (run.stages.length) parts.push(el("h3", {}, "Time"), stageTable(run));
  parts.push(...facts(run));
  box.replaceChildren(...parts);
  box.showModal();
}

function stageTable(run) {
  const longest = Math.max(...run.stages.map((stage) => stage.seconds), 1e-9);
  const rows = run.stages.map((stage) => {
    const bar = el("span.part");
    bar.classList.add(`stage${STAGE_NAMES.indexOf(stage.name) % 8}`, stage.from);
    bar.style.width = `${Math.max(0.5, (stage.seconds / longest) * 100)}%`;
    const loading = stage.load_seconds >= 0.005 ? `+ ${seconds(stage.load_seconds)} loading` : "";
    const peak = stage.peak_bytes ? `${(stage.peak_bytes / 2 ** 30).toFixed(2)} GiB` : "";
    return el("tr", {}, el("th", { scope: "row" }, stage.name), el("td.bar-cell", {}, bar),
      el("td.number", {}, seconds(stage.seconds)), el("td.small", {}, stage.from === "cache" ? "from the cache" : loading), el("td.number.small", {}, peak));
  });
  return el("table.stages", {}, el("tbody", {}, ...rows));
}

function facts(run) {
  const parts = [];
  const pairs = [
    ["Overrides", DATA.kind === "sweep" ? run.overrides : []],
    ["Request", [...Object.entries(run.request), ...(run.video ? [["size", `${run.video.width}×${run.video.height}, ${run.video.num_frames} frames`]] : [])]],
    ["Run", [...Object.entries(run.runtime), ...(run.seconds == null ? [] : [["time", seconds(run.seconds)]])]],
    ["Versions", Object.entries(run.versions)],
  ];
  for (const [title, entries] of pairs) {
    if (!entries.length) continue;
    const list = el("dl.facts-list", {}, ...entries.flatMap(([key, value]) => [el("dt", {}, key), el("dd", {}, value)]));
    parts.push(el("details", { open: title === "Overrides" }, el("summary", {}, title), list));
  }
  if (run.notes.length) parts.push(el("details", {}, el("summary", {}, "Notes"), ...run.notes.map((note) => el("p.small", {}, note))));
  return parts;
}
