"""What was measured before: by trials of a job, and by a run of it that has ended."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from actors.storage.output import Output
from jobs.output.figures import RunFigures
from jobs.reports.summary import read_summary
from schemas.errors import RefusedError
from schemas.output_layout import SUMMARY, TRIALS


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The figures of a run, and where they are from."""

    source: str
    """`the trial OUTPUT.trials/0003` or `the last run for OUTPUT`."""
    run: RunFigures
    on_ray: bool
    """Whether Ray was started for it, as it is for a job; a trial runs without."""


def measurements(output: Output) -> Iterator[Measurement]:
    """Yield those of the trials of an output, the newest first, and then that of its own last run."""
    trials = f"{output.path}{TRIALS}"
    stored = (each.uri for each in output.storage.list_sizes(trials))
    folders = [uri.removesuffix(f"/{SUMMARY}") for uri in stored if uri.endswith(f"/{SUMMARY}")]
    for folder in sorted(folders, reverse=True):
        if run := _last_run(Output(output.storage, folder)):
            yield Measurement(source=f"the trial {folder}", run=run, on_ray=False)
    if run := _last_run(output):
        yield Measurement(source=f"the last run for {output.path}", run=run, on_ray=True)


def _last_run(output: Output) -> RunFigures | None:
    """The last run for an output, if it has measured any speed."""
    # A damaged summary is refused by what shows it.
    with suppress(RefusedError):
        summary = read_summary(output)
        if summary and summary.last_run and summary.last_run.speeds:
            return summary.last_run
    return None
