// Large view

const large = byId("large");
let current = null;
function show(i) {
  draw(sheet.frames[i]);
  if (!large.open) large.showModal();
}
function draw(frame) {
  current = frame;
  const at = visible.indexOf(frame);
  byId("stage-picture").replaceChildren(...pictures(frame));
  byId("stage-picture").classList.toggle("deep", Boolean(frame.depth || frame.kept_images.length));
  byId("position").textContent = `${number(at + 1)} of ${number(visible.length)}`;
  byId("back").disabled = at <= 0;
  byId("on").disabled = at >= visible.length - 1;
  byId("large-prompt").replaceChildren(promptOf(frame));
  byId("large-chain").replaceChildren(...chain(frame));
  byId("large-chain").hidden = !frame.steps.length;
  const values = [
    ["negative prompt", frame.negative_prompt],
    ["row ID", frame.row_id, true],
    ["image", frame.image_index ? String(frame.image_index) : ""],
    ["seed", frame.seed, true],
    ["task", frame.task],
    ["model", frame.model],
    ["checkpoint", sheet.checkpoints[frame.model] || ""],
    ["status", frame.status],
    ["size", frame.width ? `${frame.width} × ${frame.height}` : ""],
    ...Object.entries(frame.parameters),
    ...Object.entries(frame.keep),
    ["stored in", frame.place],
  ].filter(([, value]) => value);
  byId("large-values").replaceChildren(...values.flatMap(([name, value, copies]) => [
    make("dt", {}, name),
    make("dd", {}, copies ? copyButton(name, value) : null, value),
  ]));
  byId("large-line").replaceChildren(...(frame.line ? [copyButton("row as a line of JSON", frame.line, "Copy as a row"),
    make("small", {}, "A line for a .jsonl file, which darkroom takes as input. Images of the row are not in it.")] : []));
  large.querySelector(".detail").scrollTop = 0;
}
function copyButton(name, value, text = "Copy") {
  const button = make("button", { type: "button", class: "copy", "aria-label": `Copy the ${name}` }, text);
  button.addEventListener("click", async () => {
    button.textContent = (await copy(value)) ? "Copied" : "Press Ctrl+C";
  });
  return button;
}
async function copy(value) {
  try {
    await navigator.clipboard.writeText(value);
    return true;
  } catch {
    // A page that was loaded over plain HTTP has no clipboard.
    const field = make("textarea", { class: "visually-hidden" }, value);
    large.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    return done;
  }
}
function step(by) {
  const next = visible[visible.indexOf(current) + by];
  if (next) draw(next);
}
byId("back").addEventListener("click", () => step(-1));
byId("on").addEventListener("click", () => step(1));
byId("close").addEventListener("click", () => large.close());
large.addEventListener("close", () => {
  const element = elementOf(current);
  element.focus({ preventScroll: true });
  element.scrollIntoView({ block: "nearest", inline: "nearest" });
});
large.addEventListener("keydown", (event) => {
  const by = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
  if (!by) return;
  event.preventDefault();
  step(by);
});
byId("frames").addEventListener("keydown", (event) => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!by || !event.target.matches(".film")) return;
  const films = visible.map((frame) => frameItems[sheet.frames.indexOf(frame)].querySelector(".film"));
  films[films.indexOf(event.target) + by]?.focus();
});
addEventListener("keydown", (event) => {
  if (event.key !== "/" || large.open || event.target.matches("input")) return;
  event.preventDefault();
  byId("search").focus();
});
