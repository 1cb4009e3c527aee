// What comes last: it needs all of the above.

function colophon(...children) { byId("colophon").append(make("p", {}, ...children)); }
const made = sheet.frames.filter((frame) => frame.thumbnail).length;
if (made) {
  colophon(`Shown here: ${number(made)} of ${plural(totals.images, "image", "images")}, chosen evenly from the parts, their models and tasks, `,
    "and reduced in size. The output has the originals.");
}
for (const [name, place] of Object.entries(sheet.checkpoints)) colophon(`${name}: `, code(place));
colophon("Job ", code(sheet.fingerprint));

readState();
