"""How much traffic with the device there was: counted from the events of a job, and as tables in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.parity import documented_waits
from tests.support.pretended_gpu.audited_run import Audited
from tests.support.pretended_gpu.device_events import DeviceEvent, Kind, Stage
from tests.support.pretended_gpu.pretended_jobs import FEW_STEPS, STEPS, TASKS

Rows = Mapping[str, Sequence[str]]
"""The cells of a table, by the name that each row begins with."""

_STEP = ("step waits", "step copies", "step kernels", "row waits", "row copies")
SYSTEM_HEAD = ("checkpoint and task", *_STEP, "image waits", "image copies")
SCHEDULER_HEAD = ("scheduler: text2img / img2img / inpaint", *_STEP)
FEATURE_HEAD = ("a row with", "waits", "copies")
SYSTEM_FIELDS = (
    *("step_waits", "step_copies", "step_kernels", "row_waits", "row_copies", "image_waits", "image_copies"),
)
SCHEDULER_FIELDS = SYSTEM_FIELDS[:5]


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What one row asked the device for."""

    step_waits: float
    step_copies: float
    step_kernels: float
    """Waits, copies and kernels for each time that its call came to the UNet, outside of the UNet."""
    row_waits: float
    row_copies: float
    """Waits and copies before the loop, outside of the encoders, and those that the loop needs once."""
    image_waits: float
    image_copies: float
    """Waits and copies after the loop, to decode an image and to bring it to the host."""


def traffic(audited: Audited, row_id: str, steps: Sequence[int] = STEPS) -> Traffic:
    """The traffic of the rows that `twice` has made of one."""
    names = [f"{row_id}@{number}" for number in steps]
    few_calls, many_calls = (audited.unet_calls[name] for name in names)
    few, many = (
        [each for each in audited.events if each.row_id == name and not each.module] for name in names
    )

    def a_step(kind: Kind) -> float:
        difference = _count(many, kind, Stage.LOOP) - _count(few, kind, Stage.LOOP)
        return difference / (many_calls - few_calls)

    def a_row(kind: Kind) -> float:
        once = _count(few, kind, Stage.LOOP) - a_step(kind) * few_calls
        # Schedulers with a memory do less in their first steps.
        return _count(few, kind, Stage.START) + max(0.0, once)

    return Traffic(
        step_waits=a_step(Kind.WAIT),
        step_copies=a_step(Kind.COPY),
        step_kernels=a_step(Kind.KERNEL),
        row_waits=a_row(Kind.WAIT),
        row_copies=a_row(Kind.COPY),
        image_waits=_count(few, Kind.WAIT, Stage.END),
        image_copies=_count(few, Kind.COPY, Stage.END),
    )


def _count(events: Iterable[DeviceEvent], kind: Kind, stage: Stage) -> int:
    return sum(event.kind is kind and event.stage is stage for event in events)


def system_cells(audited: Audited) -> Rows:
    """The table of systems."""
    counts = {name: traffic(audited, name, FEW_STEPS) for name in _names(audited)}
    return {
        name: [_number(getattr(count, field)) for field in SYSTEM_FIELDS] for name, count in counts.items()
    }


def scheduler_cells(audited: Audited) -> Rows:
    """The table of schedulers; a cell has the values of the three tasks, or one if they are the same."""
    counts = {name: traffic(audited, name) for name in _names(audited)}
    schedulers = dict.fromkeys(name.split()[0] for name in counts)
    return {
        scheduler: [
            _one_or_all([_number(getattr(counts[f"{scheduler} {task}"], field)) for task in TASKS])
            for field in SCHEDULER_FIELDS
        ]
        for scheduler in schedulers
    }


def feature_cells(audited: Audited) -> list[str]:
    """The waits and copies of a job outside of its denoising loops, for each of its rows."""
    events = [each for each in audited.events if each.stage is not Stage.LOOP and each.module != "unet"]
    num_rows = len(audited.made.rows)
    return [_number(sum(each.kind is kind for each in events) / num_rows) for kind in (Kind.WAIT, Kind.COPY)]


def table(head: Sequence[str], rows: Rows) -> str:
    """A table in Markdown, one fact a row."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join([name, *cells])} |" for name, cells in rows.items())])


def table_rows(page: str, head: Sequence[str]) -> Rows:
    """The cells of the page's table with this head, by the name that each row begins with."""
    return {name: [*cells.values()] for name, cells in documented_waits.table_rows(page, head[0]).items()}


def _names(audited: Audited) -> dict[str, None]:
    """The rows' names, without the numbers of steps."""
    return dict.fromkeys(row["row_id"].partition("@")[0] for row in audited.made.rows)


def _one_or_all(values: list[str]) -> str:
    return values[0] if len({*values}) == 1 else " / ".join(values)


def _number(value: float) -> str:
    return f"{value:g}"
