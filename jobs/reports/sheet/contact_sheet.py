"""The contact sheet: one HTML file that shows a sample of a job's images in any browser, also offline."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from actors.rows.routing import Router
from actors.storage.output import Output
from jobs.output.figures import Totals, generated_text
from jobs.output.job_record import require_record
from jobs.output.part_footers import read_footers
from jobs.output.parts import list_parts, totals_of
from jobs.reports.sheet.even_choice import spread
from jobs.reports.sheet.frames import IMAGE_BYTES, MAX_FOOTERS, Failure, Frame, sample_failures, sample_frames
from jobs.reports.summary import Summary, current_summary
from models.demo_cache import RANDOM_KINDS
from schemas.columns.sweep_columns import is_sweep_column
from schemas.errors import RefusedError
from schemas.output_layout import CONTACT_SHEET
from schemas.wording.amounts import size_text
from schemas.wording.printable import escaped

_RANDOM = {f"demo:{kind}" for kind in RANDOM_KINDS}
MAX_FRAMES = 240
MAX_SWEEP_FRAMES = 2000
"""The most frames of an output with the columns of a sweep, whose grid should have no holes."""
_FOLDER = Path(__file__).parent
_STYLES = ("contact_sheet.css", "grid.css")
_SCRIPTS = ("contact_sheet.js", "large_view.js", "grid.js", "start.js")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """Everything that the page shows; its script uses these names."""

    name: str
    output: str
    fingerprint: str
    checkpoints: Mapping[str, str]
    """The checkpoint of each model."""
    random_models: tuple[str, ...]
    """Models with random weights."""
    num_rows: int
    """Rows of the whole input."""
    num_shards: int
    num_parts: int
    """Shards that have a part."""
    num_searched: int
    """Parts whose footers were read for failed rows."""
    totals: Totals
    size: str
    """`totals.size_bytes` as text."""
    finished_at: str
    """When the summary was written; empty where the job is not finished."""
    last_run: str
    """What the last run has generated; empty if that is not known."""
    frames: tuple[Frame, ...]
    failures: tuple[Failure, ...]


def write_report(output: Output, *, max_images: int = MAX_FRAMES, summary: Summary | None = None) -> str:
    """Write the contact sheet of an output, finished or not; its URI.

    `summary`: that of a job which is being finished; None: the output's own, if it is that of its parts.
    """
    try:
        page = render(make_sheet(output, max_images=max_images, summary=summary))
    except UnicodeDecodeError as error:
        raise RefusedError(
            f"a part of {output.path} has a text that is not valid UTF-8 ({error}); "
            "`darkroom verify` names the part"
        ) from error
    output.replace(CONTACT_SHEET, page.encode())
    return output.uri(CONTACT_SHEET)


def make_sheet(
    output: Output, *, max_images: int, image_bytes: int = IMAGE_BYTES, summary: Summary | None = None
) -> Sheet:
    """The contact sheet of an output, for which about `image_bytes` of embedded images are read.

    `summary` as in `write_report`.
    """
    record = require_record(output)
    parts = list_parts(output, record.shard_names)
    summary = summary or current_summary(output, record, parts)
    totals = summary.totals if summary else totals_of(output, parts)
    router = Router(record.spec, record.models)
    footers = list(read_footers(output, spread(parts, MAX_FOOTERS)))
    models = record.spec.models
    if any(is_sweep_column(name) for footer in footers for group in footer.groups for name in group.columns):
        max_images = max(max_images, MAX_SWEEP_FRAMES)
    return Sheet(
        name=record.name,
        output=output.path,
        fingerprint=record.fingerprint,
        checkpoints={name: model.sources_text for name, model in models.items()},
        random_models=tuple(name for name, model in models.items() if model.checkpoint in _RANDOM),
        num_rows=record.num_rows,
        num_shards=record.num_shards,
        num_parts=len(parts),
        num_searched=len(footers),
        totals=totals,
        size=size_text(totals.size_bytes),
        finished_at=(summary and summary.finished_at) or "",
        last_run=generated_text(summary.last_run) if summary and summary.last_run else "",
        frames=tuple(sample_frames(output, router, footers, max_images, image_bytes)),
        failures=tuple(sample_failures(output.storage, footers)),
    )


def render(sheet: Sheet) -> str:
    """The page: the template with the sheet as JSON inside, whose values the script shows as text only."""
    template = _template()
    sheet_json = json.dumps({**asdict(sheet), "rows_done": sheet.totals.rows}, ensure_ascii=False)
    # The JSON must not end its element or begin a comment, so these characters are written as JSON escapes.
    for character in "<>&":
        sheet_json = sheet_json.replace(character, f"\\u{ord(character):04x}")
    values = {
        "title": html.escape(escaped(sheet.name)),
        "policy": html.escape(_policy(template)),
        "sheet": sheet_json,
    }
    # All in one pass, because a prompt may contain {{title}}.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)


def _template() -> str:
    """The page without what comes from an output, with its style and its script inside."""
    page = _read("contact_sheet.html")
    return page.replace("{{style}}", _read(*_STYLES)).replace("{{script}}", _read(*_SCRIPTS))


def _read(*names: str) -> str:
    """These files of this folder, one after the other."""
    return "".join((_FOLDER / name).read_text(encoding="utf-8") for name in names)


def _policy(template: str) -> str:
    """A Content-Security-Policy that lets the template's own script and style run, and nothing else."""
    script, style = (
        "'sha256-" + base64.b64encode(hashlib.sha256(match[1].encode()).digest()).decode() + "'"
        for match in (
            re.search(rf"<{tag}>(.*?)</{tag}>", template, re.DOTALL) or ("", "")
            for tag in ("script", "style")
        )
    )
    return (
        f"default-src 'none'; img-src data:; script-src {script}; style-src {style}; "
        "base-uri 'none'; form-action 'none'"
    )
