"""How often the host waits for a device, by the tables of docs/batching.md.

Tests hold these tables against a pretended GPU, so a real one that waits more often does what that one does
not know.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.parity.drawn_images import Record
from benchmarks.parity.plain_diffusers import IMAGE, MASK, row

PAGE = Path(__file__).parents[2] / "docs" / "batching.md"
TABLES = ("scheduler: text2img / img2img / inpaint", "checkpoint and task")
"""How the first cells of the two tables begin: by scheduler, and by system."""
TASKS: Mapping[str, Record] = {
    "text2img": {},
    "img2img": {"image": IMAGE, "strength": 1.0},
    "inpaint": {"image": IMAGE, "mask_image": MASK, "strength": 1.0},
}
STEPS = 4
MODEL = "sd"


def rows() -> Iterator[Record]:
    """A row of each scheduler and task, for a Stable Diffusion whose UNet has 4 channels."""
    for scheduler in table_rows(PAGE.read_text(encoding="utf-8"), TABLES[0]):
        for task, values in TASKS.items():
            name = f"{scheduler} {task}"
            yield row(name, MODEL, task, scheduler=scheduler, num_inference_steps=STEPS, **values)


def waits_of(scheduler: str, task: str) -> float:
    """How often the host waits for such a row, without the one wait for an image that has arrived.

    That one is asked for, so that torch does not report it.
    """
    page = PAGE.read_text(encoding="utf-8")
    of_scheduler = table_rows(page, TABLES[0])[scheduler]
    in_a_step, before = (_of_task(of_scheduler[name], task) for name in ("step waits", "row waits"))
    behind = float(table_rows(page, TABLES[1])[f"{MODEL} {task}"]["image waits"])
    return STEPS * in_a_step + before + behind


def _of_task(cell: str, task: str) -> float:
    """The value of a cell that has one for each task, or one for all."""
    values = cell.split(" / ")
    return float(values[[*TASKS].index(task) if len(values) > 1 else 0])


def table_rows(page: str, first: str) -> dict[str, dict[str, str]]:
    """The cells of the table whose head begins with this cell, by the name of the row and of the column."""
    block = next(block for block in page.split("\n\n") if block.startswith(f"| {first} |"))
    head, _, *lines = (_cells(line) for line in block.splitlines())
    return {name: dict(zip(head[1:], cells, strict=True)) for name, *cells in lines}


def _cells(line: str) -> Sequence[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]
