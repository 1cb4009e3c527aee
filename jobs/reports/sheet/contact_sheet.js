"use strict";
// Everything that comes from rows goes through textContent or setAttribute: it is text and stays text.
const byId = (id) => document.getElementById(id);
const sheet = JSON.parse(byId("sheet").textContent);
const totals = sheet.totals;
const CRISP_SIDE = 128;

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}
const number = (value) => value.toLocaleString("en");
const plural = (count, one, many) => `${number(count)} ${count === 1 ? one : many}`;

function moment(iso) {
  const date = new Date(iso);
  if (Number.isNaN(date.getTime())) return iso;
  return date.toLocaleString("en-GB", { dateStyle: "long", timeStyle: "short", timeZone: "UTC" }) + " UTC";
}

// Header

const isComplete = sheet.num_parts === sheet.num_shards;
byId("where").append(make("span", { class: "mono" }, sheet.output), sheet.finished_at ? ` · finished ${moment(sheet.finished_at)}` : "",
  sheet.last_run ? ` · the last run ${sheet.last_run}` : "");

function total(name, value, kind) {
  byId("totals").append(make("div", { class: kind }, make("dt", {}, name), make("dd", {}, value)));
}
total(isComplete ? (sheet.rows_done === 1 ? "row" : "rows") : `of ${plural(sheet.num_rows, "row", "rows")} done`, number(sheet.rows_done));
total("ok", number(totals.ok));
if (totals.filtered) total("filtered", number(totals.filtered), "filtered");
total("failed", number(totals.failed), totals.failed ? "failed" : "");
total(totals.images === 1 ? "image" : "images", number(totals.images));
total("size of parts", sheet.size);

const missing = Math.max(0, sheet.num_rows - sheet.rows_done);
const outcomes = [["ok", totals.ok, "ok"], ["filtered", totals.filtered, "filtered"], ["failed", totals.failed, "failed"], ["todo", missing, "not done"]];
byId("bar").setAttribute("aria-label", outcomes.map(([, count, name]) => `${number(count)} ${name}`).join(", "));
for (const [kind, count, name] of outcomes) {
  if (!count) continue;
  const piece = make("span", { class: kind, title: `${number(count)} ${name}` });
  piece.style.flexGrow = count;
  byId("bar").append(piece);
}

function note(...children) { byId("notes").append(make("p", { class: "note" }, ...children)); }
const code = (text) => make("code", {}, text);
const listed = (items) => items.flatMap((item, i) => (i ? [i === items.length - 1 ? " and " : ", ", item] : [item]));
if (!isComplete) {
  note(make("strong", {}, "Not finished. "), `Done so far: ${number(sheet.num_parts)} of ${plural(sheet.num_shards, "part", "parts")}, `,
    `${number(sheet.rows_done)} of ${plural(sheet.num_rows, "row", "rows")}. If no driver is running, run the job again to resume it.`);
}
if (sheet.random_models.length) {
  const all = sheet.random_models.length === Object.keys(sheet.checkpoints).length;
  const one = sheet.random_models.length === 1;
  note(one ? "The checkpoint" : "The checkpoints", ...(all ? [] : [" of ", ...listed(sheet.random_models.map(code))]), one ? " has" : " have",
    all ? " random weights: the images are noise by design. " : ` random weights: ${one ? "its" : "their"} images are noise by design. `,
    "To generate real images, set ", ...listed(sheet.random_models.map((name) => code(`models.${name}.checkpoint`))),
    " to real weights: a folder or a Hugging Face repository.");
}

// Frames

const SHORT = {
  num_inference_steps: (value) => `${value} ${value === "1" ? "step" : "steps"}`,
  guidance_scale: (value) => `guidance ${value}`,
  strength: (value) => `strength ${value}`,
  loras: (value) => value && `LoRA ${value}`,
  controls: (value) => value && `ControlNet ${value}`,
  scheduler: (value) => value.replace(/Scheduler$/, ""),
};
const settings = (frame) => [
  frame.task,
  frame.width ? `${frame.width}×${frame.height}` : "",
  ...Object.entries(frame.parameters).map(([name, value]) => (SHORT[name] ? SHORT[name](value) : "")),
  frame.seed ? `seed ${frame.seed}` : "",
].filter(Boolean);

function image(frame, source, alt, kind) {
  const crisp = Math.max(frame.width, frame.height) <= CRISP_SIDE ? "crisp" : "";
  return make("img", { src: source, alt, decoding: "async", draggable: "false", class: `${crisp} ${kind}`.trim() });
}
function pictures(frame) {
  if (frame.thumbnail) {
    const shown = [image(frame, frame.thumbnail, frame.prompt || `No prompt; row ${frame.row_id}`, "")];
    if (frame.kept_images.length) {
      shown.unshift(make("span", { class: "kept" },
        ...frame.kept_images.map((kept) => image(frame, kept.thumbnail, `${kept.column} of the row`, ""))));
    }
    if (frame.depth) shown.push(image(frame, frame.depth, "Depth map", "depth"));
    return shown;
  }
  const why = frame.problem ? `This image cannot be opened: ${frame.problem}` : "Withheld by the safety checker";
  return [make("span", { class: "blank" }, why)];
}
const promptOf = (record) => (record.prompt ? record.prompt : make("span", { class: "none" }, "no prompt"));

function clamped(record) {
  const button = make("button", { type: "button", class: "prompt", "aria-expanded": "false", title: "Show the whole prompt" },
    make("span", {}, promptOf(record)));
  button.addEventListener("click", () => {
    const open = button.getAttribute("aria-expanded") === "true";
    button.setAttribute("aria-expanded", String(!open));
    button.title = open ? "Show the whole prompt" : "Show less";
  });
  return button;
}

// The whole ID is in the title: its ends tell it from others, and its middle would fill the page.
function middle(text, most) {
  const letters = Array.from(text);
  return letters.length <= most ? text : [...letters.slice(0, most / 2), "…", ...letters.slice(-most / 2)].join("");
}
const rowId = (record, most) => make("span", { class: "mono", title: record.row_id }, middle(record.row_id, most));

function chain(frame) {
  return frame.steps.map((step, i) => make("li", {},
    step.thumbnail ? make("img", { src: step.thumbnail, alt: `Image of step ${i + 1}`, decoding: "async", class: "crisp" }) : null,
    make("span", {}, [step.route === step.task ? step.task : `${step.route} (${step.task})`, step.model,
      step.width ? `${step.width}×${step.height}` : ""]
      .filter(Boolean).join(" · "))));
}

function frameItem(frame, i) {
  return make("li", { class: "frame" },
    make("button", { type: "button", class: "film", "aria-haspopup": "dialog", onclick: () => show(i) },
      make("span", { class: "edge", "aria-hidden": "true" }, make("span", {}, `▸ ${i + 1}`), make("span", {}, frame.model)),
      make("span", { class: "picture" }, ...pictures(frame)), make("span", { class: "mark" })),
    make("div", { class: "caption" }, clamped(frame),
      make("p", { class: "row-id" }, rowId(frame, 40), frame.image_index ? ` · image ${frame.image_index}` : ""),
      frame.steps.length ? make("ol", { class: "chain", "aria-label": "Steps" }, ...chain(frame)) : null,
      make("p", { class: "settings" }, ...settings(frame).map((value) => make("span", {}, value)))));
}

// Failures, by error_code

const failureItems = new Map();
function failureRow(failure) {
  const row = make("tr", {},
    make("td", {}, rowId(failure, 60), make("small", {}, failure.place)),
    make("td", {}, failure.task || "–", make("small", {}, failure.model)),
    make("td", {}, failure.error_message), make("td", {}, clamped(failure)));
  failureItems.set(failure, row);
  return row;
}
function failureGroup(name, count) {
  const shown = sheet.failures.filter((failure) => failure.error_code === name);
  const told = shown.length < count ? `${plural(count, "row", "rows")}, ${number(shown.length)} shown` : plural(count, "row", "rows");
  return make("details", { open: true }, make("summary", {}, code(name), make("span", {}, told)),
    shown.length ? make("table", {},
      make("thead", {}, make("tr", {}, ...["Row", "Task and model", "Reason", "Prompt"].map((title) => make("th", { scope: "col" }, title)))),
      make("tbody", {}, ...shown.map(failureRow))) : null);
}
const codes = new Map(totals.error_codes);
for (const failure of sheet.failures) if (!codes.has(failure.error_code)) codes.set(failure.error_code, 1);
const failureGroups = [...codes].map(([name, count]) => ({ name, element: failureGroup(name, count) }));
byId("failure-groups").append(...failureGroups.map((group) => group.element));
const searched = sheet.num_searched < sheet.num_parts
  ? ` Parts searched for them: ${number(sheet.num_searched)} of ${number(sheet.num_parts)}.` : "";
byId("failures-note").append(`Each of them is in the output, without an image.${searched}`);
if (sheet.failures.length < totals.failed) {
  byId("failures-note").append(` Shown here: ${number(sheet.failures.length)} of ${number(totals.failed)}. With Python, all of them: `,
    code(`pandas.read_parquet(${JSON.stringify(`${sheet.output}/data`)}, columns=["row_id", "error_code", "error_message"], `
      + `filters=[("status", "==", "failed")])`));
}

const frameItems = sheet.frames.map(frameItem);
byId("frames").append(...frameItems);

// Filters. Their state is in the # part of the address, so that a view can be bookmarked or shared.

const entries = [
  ...sheet.frames.map((record, i) => ({ record, status: record.status, element: frameItems[i], isFrame: true })),
  ...sheet.failures.map((record) => ({ record, status: "failed", element: failureItems.get(record), isFrame: false })),
];
const valueOf = {
  task: (entry) => entry.record.task || "none",
  status: (entry) => entry.status,
  model: (entry) => entry.record.model || "none",
  error: (entry) => entry.record.error_code || "",
};
for (const entry of entries) {
  const { prompt, negative_prompt, row_id, task, model, error_code, error_message, steps = [], parameters = {} } = entry.record;
  const ofSteps = steps.flatMap((step) => [step.route, step.task, step.model]);
  entry.text = [prompt, negative_prompt, row_id, task, model, entry.status, error_code, error_message, ...ofSteps,
    parameters.loras, parameters.controls]
    .join("\n").toLowerCase();
}
const picked = { task: new Set(), status: new Set(), model: new Set(), error: new Set() };
const chips = [];
for (const facet of Object.keys(picked)) {
  const counts = new Map();
  for (const value of entries.map(valueOf[facet])) if (value) counts.set(value, (counts.get(value) || 0) + 1);
  if (counts.size < 2) continue;
  const group = make("fieldset", { class: "group" }, make("legend", {}, facet));
  for (const [value, count] of counts) {
    const chip = make("button", { type: "button", class: "chip", "aria-pressed": "false" }, value, make("span", {}, number(count)));
    chip.addEventListener("click", () => { if (!picked[facet].delete(value)) picked[facet].add(value); filter(); });
    chips.push({ facet, value, chip });
    group.append(chip);
  }
  byId("filters").append(group);
}

let visible = [];
function filter() {
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = (entry) => words.every((word) => entry.text.includes(word))
    && Object.entries(picked).every(([facet, values]) => !values.size || values.has(valueOf[facet](entry)));
  for (const entry of entries) entry.element.hidden = !fits(entry);
  const shown = entries.filter((entry) => !entry.element.hidden);
  visible = shown.filter((entry) => entry.isFrame).map((entry) => entry.record);
  const failed = shown.filter((entry) => !entry.isFrame);
  const isFiltered = shown.length < entries.length;
  const shownCodes = new Set(failed.map((entry) => entry.record.error_code));
  for (const group of failureGroups) group.element.hidden = isFiltered && !shownCodes.has(group.name);
  byId("failures").hidden = isFiltered ? !failed.length : !failureGroups.length;
  for (const { facet, value, chip } of chips) chip.setAttribute("aria-pressed", String(picked[facet].has(value)));
  byId("frames").hidden = grid.isOn;
  byId("grid").hidden = !grid.isOn;
  byId("view-frames").setAttribute("aria-pressed", String(!grid.isOn));
  byId("view-grid").setAttribute("aria-pressed", String(grid.isOn));
  if (grid.isOn) visible = drawGrid(visible, failed.map((entry) => entry.record));
  byId("count").textContent = isFiltered || visible.length < sheet.frames.length
    ? `Found on this page: ${number(visible.length)} of ${plural(sheet.frames.length, "frame", "frames")}, `
      + `${number(failed.length)} of ${plural(sheet.failures.length, "failed row", "failed rows")}.`
    : `On this page: ${plural(sheet.frames.length, "frame", "frames")} of ${plural(totals.images, "image", "images")}, `
      + `${number(sheet.failures.length)} of ${plural(totals.failed, "failed row", "failed rows")}.`;
  byId("clear").hidden = !words.length && !Object.values(picked).some((values) => values.size);
  byId("empty").hidden = visible.length > 0 || failed.length > 0;
  byId("empty").textContent = sheet.frames.length ? "No image matches all of this." : "There are no images yet.";
  keepState(words);
}
function keepState(words) {
  const state = new URLSearchParams();
  if (words.length) state.set("q", byId("search").value);
  for (const [facet, values] of Object.entries(picked)) for (const value of values) state.append(facet, value);
  if (grid.isOn !== isGridByDefault) state.set("view", grid.isOn ? "grid" : "frames");
  if (grid.isOn && areAxesChosen()) {
    state.set("x", grid.x.name);
    state.set("y", grid.y ? grid.y.name : "");
    for (const [name, value] of grid.picked) if (value !== ALL) state.set(`is.${name}`, value);
  }
  const hash = state.toString();
  if (hash !== location.hash.slice(1)) history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
}
function readState() {
  const state = new URLSearchParams(location.hash.slice(1));
  byId("search").value = state.get("q") || "";
  for (const [facet, values] of Object.entries(picked)) {
    values.clear();
    for (const { facet: of, value } of chips) if (of === facet && state.getAll(facet).includes(value)) values.add(value);
  }
  readGrid(state);
  filter();
}
byId("search").addEventListener("input", filter);
byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("clear").addEventListener("click", () => {
  byId("search").value = "";
  for (const values of Object.values(picked)) values.clear();
  filter();
  byId("search").focus();
});
addEventListener("hashchange", readState);
