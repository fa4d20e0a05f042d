// The runs as a table of two parameters, or one after the other.
function drawGrid() {
  const runs = wantedRuns();
  const grid = document.getElementById("grid");
  watcher.disconnect();
  grid.replaceChildren(runs.length ? arranged(runs) : el("p.empty", {}, "No run matches these filters."));
  for (const card of cards.values()) {
    for (const value of card.querySelectorAll(".values [data-key]")) {
      value.classList.toggle("axis", [view.rows, view.columns].includes(value.dataset.key));
    }
    if (!card.video) continue;
    if (card.isConnected) watcher.observe(card.video);
    else if (clock.followers.has(card.video)) clock.remove(card.video);
  }
  clock.seek(clock.time);
}

function arranged(runs) {
  const rows = parameterOf(view.rows);
  const columns = parameterOf(view.columns);
  if (!rows && !columns) return flow(runs);
  const shown = (parameter) => (parameter ? parameter.values.filter((value) => runs.some((run) => valueOf(run, parameter.key) === value)) : [null]);
  const across = shown(columns);
  const table = el("table.matrix", { role: "table" });
  table.style.setProperty("--columns", across.length);
  if (columns) {
    const corner = rows ? el("td.corner", { role: "cell" }, el("span", { title: rows.key }, `${rows.label} ↓`), el("span", { title: columns.key }, `${columns.label} →`)) : null;
    const heads = across.map((value) => el("th", { role: "columnheader", scope: "col", title: `${columns.key} = ${value}` }, rows ? "" : el("small", {}, columns.label + " "), value));
    table.append(el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, corner, ...heads)));
  }
  const body = el("tbody", { role: "rowgroup" });
  for (const down of shown(rows)) {
    const line = el("tr", { role: "row" });
    if (rows) line.append(el("th", { role: "rowheader", scope: "row", title: `${rows.key} = ${down}` }, el("span", {}, el("small", {}, rows.label + " "), down)));
    for (const value of across) {
      const here = runs.filter((run) => (!rows || valueOf(run, rows.key) === down) && (!columns || valueOf(run, columns.key) === value));
      line.append(el("td", { role: "cell" }, ...here.map((run) => cards.get(run))));
    }
    body.append(line);
  }
  table.append(body);
  return table;
}

function flow(runs) {
  const sorted = [...runs];
  if (PARAMETERS.length === 1) {
    const { key, values } = PARAMETERS[0];
    sorted.sort((a, b) => values.indexOf(valueOf(a, key)) - values.indexOf(valueOf(b, key)));
  }
  return el("div.flow", {}, ...sorted.map((run) => cards.get(run)));
}
