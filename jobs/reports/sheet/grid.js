
// Grid: two properties of the rows are its axes, and the others are filters. Columns of a sweep come first.

const SWEEP = "sweep_";
const MAX_VALUES = 400;
const ALL = "";

function properties() {
  const ofSweep = new Set(), others = new Set(["prompt", "seed", "task", "model", "size"]);
  for (const frame of sheet.frames) {
    for (const name of Object.keys(frame.keep)) (name.startsWith(SWEEP) ? ofSweep : others).add(name);
    for (const name of Object.keys(frame.parameters)) others.add(name);
  }
  const own = (name) => (record) => ({
    prompt: record.prompt, seed: record.seed, task: record.task, model: record.model,
    size: record.width ? `${record.width}×${record.height}` : "",
    ...record.parameters, ...record.keep,
  })[name] || "";
  const all = [
    ...[...ofSweep].map((name) => ({ name, label: name.slice(SWEEP.length), valueOf: own(name), isSwept: true })),
    ...[...others].filter((name) => !ofSweep.has(SWEEP + name)).map((name) => ({ name, label: name, valueOf: own(name), isSwept: false })),
  ];
  // A value of a sweep all of whose rows have failed is a value too.
  for (const property of all) {
    const records = property.isSwept ? [...sheet.frames, ...sheet.failures] : sheet.frames;
    property.values = inOrder(new Set(records.map(property.valueOf)));
  }
  return all.filter(({ values }) => values.length > 1 && values.length <= MAX_VALUES);
}
// Numbers by size, after a missing one; other values as they come first.
const areNumbers = (values) => values.every((value) => Number.isFinite(Number(value)));
function inOrder(values) {
  const list = [...values];
  return areNumbers(list) ? list.sort((a, b) => (a !== "") - (b !== "") || a - b) : list;
}
const dimensions = properties();
const byName = new Map(dimensions.map((property) => [property.name, property]));
const isNumeric = (property) => areNumbers(property.values);

// Rows are for long texts and for the property with more values: a page scrolls down more easily than aside.
function firstAxes() {
  const swept = dimensions.filter((property) => property.isSwept);
  const [one, two] = swept.length > 1 ? swept : [...swept, ...dimensions.filter((property) => !property.isSwept)];
  if (!two) return [one, null];
  const numeric = [isNumeric(one), isNumeric(two)];
  if (numeric[0] !== numeric[1]) return numeric[0] ? [one, two] : [two, one];
  return one.values.length <= two.values.length ? [one, two] : [two, one];
}
const grid = { isOn: false, x: null, y: null, picked: new Map() };
function setAxes(x, y) {
  [grid.x, grid.y] = [x, y];
  for (const property of dimensions) {
    if (property === x || property === y) grid.picked.delete(property.name);
    else if (!grid.picked.has(property.name)) grid.picked.set(property.name, firstPick(property));
  }
}
const filtersOfGrid = () => dimensions.filter((property) => property !== grid.x && property !== grid.y && property.isSwept)
  .concat(dimensions.filter((property) => property !== grid.x && property !== grid.y && !property.isSwept && grid.picked.get(property.name) !== ALL));

function choice(label, options, chosen, onchange) {
  const select = make("select", { onchange: () => onchange(select.value) },
    ...options.map(([value, text]) => make("option", { value, selected: value === chosen }, text)));
  return make("label", { class: "axis" }, make("span", {}, label), select);
}
const short = (text, most = 48) => middle(text, most);
function drawAxes() {
  const names = dimensions.map(({ name, label }) => [name, label]);
  const set = (axis) => (name) => {
    const property = byName.get(name);
    const other = axis === "x" ? grid.y : grid.x;
    const before = grid[axis];
    if (axis === "x") setAxes(property, property === other ? before : other);
    else setAxes(property === other ? before : other, property);
    filter();
  };
  const picks = filtersOfGrid().map((property) => choice(property.label,
    [[ALL, "all"], ...property.values.map((value) => [value, short(value) || "none"])], grid.picked.get(property.name),
    (value) => { grid.picked.set(property.name, value); filter(); }));
  byId("axes").replaceChildren(
    choice("rows", grid.y ? names : [["", "–"]], grid.y ? grid.y.name : "", set("y")),
    make("button", { type: "button", class: "swap", title: "Swap rows and columns", "aria-label": "Swap rows and columns",
      onclick: () => { setAxes(grid.y, grid.x); filter(); } }, "⇄"),
    choice("columns", names, grid.x.name, set("x")), ...picks);
}

let cellButtons = new Map();
function drawGrid(frames, failures) {
  drawAxes();
  const fits = (record, properties) => properties.every((property) => {
    const value = grid.picked.get(property.name) || ALL;
    return value === ALL || property.valueOf(record) === value;
  });
  // Of a failed row the page has no parameters, and of its sweep all that it needs to be in the grid.
  const swept = dimensions.filter((property) => property.isSwept);
  const hasCell = (failure) => [grid.x, grid.y].every((property) => !property || property.valueOf(failure) !== "");
  const inCell = new Map();
  const add = (record, isFrame) => {
    const key = JSON.stringify([grid.y ? grid.y.valueOf(record) : "", grid.x.valueOf(record)]);
    if (!inCell.has(key)) inCell.set(key, { frames: [], failures: [] });
    inCell.get(key)[isFrame ? "frames" : "failures"].push(record);
  };
  for (const frame of frames.filter((each) => fits(each, dimensions))) add(frame, true);
  for (const failure of failures.filter((each) => hasCell(each) && fits(each, swept))) add(failure, false);
  const rows = grid.y ? grid.y.values : [""];
  // Values of a sweep are all there, so that what is missing is seen.
  const keys = [...inCell.keys()].map((key) => JSON.parse(key));
  const shown = (axis, property, values) => (property && property.isSwept ? values
    : values.filter((value) => keys.some((key) => key[axis] === value)));
  const [shownRows, shownColumns] = [shown(0, grid.y, rows), shown(1, grid.x, grid.x.values)];
  cellButtons = new Map();
  const head = make("thead", {}, make("tr", {}, make("td", { class: "corner" },
    make("span", {}, grid.x.label, " →"), grid.y ? make("span", {}, grid.y.label, " ↓") : null),
  ...shownColumns.map((value) => make("th", { scope: "col", title: value }, make("span", {}, value || "none")))));
  const body = shownRows.map((row, y) => make("tr", {},
    make("th", { scope: "row", title: row }, make("span", {}, row || (grid.y ? "none" : ""))),
    ...shownColumns.map((column, x) => gridCell(inCell.get(JSON.stringify([row, column])), x, y))));
  byId("grid-table").style.setProperty("--columns", shownColumns.length);
  byId("grid-table").replaceChildren(head, make("tbody", {}, ...body));
  return [...cellButtons.keys()];
}
function gridCell(content, x, y) {
  const cell = make("td", { "data-x": x, "data-y": y });
  if (!content) {
    cell.append(make("span", { class: "hole", title: "No row of this page has these values" }, "·"));
    return cell;
  }
  const many = content.frames.length + content.failures.length > 1;
  for (const frame of content.frames) {
    const button = make("button", { type: "button", class: "cell", "aria-haspopup": "dialog",
      "aria-label": frame.prompt || frame.row_id, title: frame.row_id, onclick: () => show(sheet.frames.indexOf(frame)) },
    ...(frame.thumbnail ? [image(frame, frame.thumbnail, "", "")] : [make("span", { class: "blank" }, frame.status)]));
    cellButtons.set(frame, button);
    cell.append(button);
  }
  for (const failure of content.failures) {
    cell.append(make("span", { class: "cell failure", title: `${failure.row_id}: ${failure.error_message}` }, failure.error_code));
  }
  cell.classList.toggle("many", many);
  return cell;
}
const elementOf = (frame) => (grid.isOn && cellButtons.get(frame)) || frameItems[sheet.frames.indexOf(frame)].querySelector(".film");

function setView(isGrid) {
  grid.isOn = isGrid;
  filter();
}
byId("view-frames").addEventListener("click", () => setView(false));
byId("view-grid").addEventListener("click", () => setView(true));
byId("axes").addEventListener("submit", (event) => event.preventDefault());
byId("grid-table").addEventListener("keydown", (event) => {
  const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] || [0, 0];
  const cell = event.target.closest("td");
  if ((!dx && !dy) || !cell) return;
  event.preventDefault();
  let [x, y] = [Number(cell.dataset.x) + dx, Number(cell.dataset.y) + dy];
  for (;;) {
    const next = byId("grid-table").querySelector(`td[data-x="${x}"][data-y="${y}"]`);
    if (!next) return;
    const button = next.querySelector("button");
    if (button) { button.focus(); return; }
    [x, y] = [x + dx, y + dy];
  }
});
addEventListener("keydown", (event) => {
  if (event.key !== "g" || event.ctrlKey || event.metaKey || event.altKey) return;
  if (large.open || event.target.matches("input, select, textarea") || byId("views").hidden) return;
  setView(!grid.isOn);
});

function areAxesChosen() {
  const [x, y] = firstAxes();
  return grid.x !== x || grid.y !== y || [...grid.picked].some(([name, value]) => value !== firstPick(byName.get(name)));
}
const firstPick = (property) => (property.isSwept ? property.values[0] : ALL);
function readGrid(state) {
  if (byId("views").hidden) return;
  grid.isOn = state.has("view") ? state.get("view") === "grid" : isGridByDefault;
  const [x, y] = state.has("x") ? [byName.get(state.get("x")), byName.get(state.get("y")) || null] : firstAxes();
  grid.picked.clear();
  setAxes(...(x ? [x, y] : firstAxes()));
  if (!state.has("x")) return;
  for (const name of grid.picked.keys()) grid.picked.set(name, state.get(`is.${name}`) ?? ALL);
}

// Without an address that says otherwise, a sweep opens as a grid.
const hasGrid = dimensions.length > 0 && sheet.frames.length > 1;
byId("views").hidden = !hasGrid;
if (hasGrid) setAxes(...firstAxes());
grid.isOn = hasGrid && dimensions.filter((property) => property.isSwept).length > 0;
const isGridByDefault = grid.isOn;
