"""The files that are written when a job is done: manifest, summary, dataset card, contact sheet, _SUCCESS."""

from actors.storage.output import Output
from jobs.output.figures import RunFigures, Totals, outcomes_text
from jobs.output.job_record import JobRecord
from jobs.output.parts import list_parts, totals_of
from jobs.reports.manifest import write_manifest
from jobs.reports.sheet.contact_sheet import write_report
from jobs.reports.summary import read_summary, write_summary
from schemas.errors import StorageError
from schemas.output_layout import (
    DATASET_CARD,
    IMAGES_FOLDER,
    OWN_FOLDER,
    PARTS_FOLDER,
    PARTS_PATTERN,
    SUCCESS,
)
from schemas.wording.amounts import counted

_IMAGES_INSIDE = "Images are inside the Parquet files."
_IMAGE_FILES = "Images are files of their own under `images/`; the paths of images begin in this folder."


def finish(output: Output, record: JobRecord, figures: RunFigures) -> Totals:
    """Write the reports of a finished job, and `_SUCCESS` last; the totals of the job.

    `_SUCCESS` must not exist while a report may be older than the parts: `unfinish` is to be called first.
    StorageError where parts that workers have written are not visible here.
    """
    parts = list_parts(output, record.shard_names)
    if not parts.are_all:
        raise StorageError(
            f"{output.uri(PARTS_FOLDER)} has {len(parts):,} of {counted(record.num_shards, 'part')}, "
            "although workers have written them all: output.path must be a folder that every machine of the "
            "cluster shares, or an s3:// URI"
        )
    # Whoever still writes a part does it in vain.
    for folder in (PARTS_FOLDER, IMAGES_FOLDER, OWN_FOLDER):
        output.storage.drop_unfinished(output.uri(folder))
    totals = totals_of(output, parts)
    write_summary(output, record, totals, figures)
    write_manifest(output, record.shard_names)
    output.replace(DATASET_CARD, _card(record, totals).encode())
    write_report(output, summary=read_summary(output))
    output.replace(SUCCESS, b"")
    return totals


def _card(record: JobRecord, totals: Totals) -> str:
    """The dataset card: its front matter is what `load_dataset(folder)` and the Hub read.

    It does not name columns: datasets takes a `dataset_info` for all of them, and the parts name theirs.
    """
    models = "\n".join(f"- `{name}`: {model.sources_text}" for name, model in record.spec.models.items())
    are_files = record.spec.output.images == "files"
    return f"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: {PARTS_PATTERN}
tags:
- darkroom
- synthetic
---

# {record.name}

{counted(totals.rows, "row")}, generated with darkroom: {outcomes_text(totals)}.

Models:

{models}

A failed row has a null `image`, an `error_code` and an `error_message`.
A safety checker has flagged the filtered rows.
{_IMAGE_FILES if are_files else _IMAGES_INSIDE}
Open it with `datasets.load_dataset` and the path of this folder, or look at `contact-sheet.html`.
"""
