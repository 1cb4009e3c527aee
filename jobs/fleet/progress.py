"""How a run shows its progress: a bar on a terminal, a plain line every few seconds elsewhere."""

import time
from collections.abc import Iterable
from types import TracebackType
from typing import Protocol

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from jobs.output.tally import Tally

LINE_EVERY_S = 10.0


class Display(Protocol):
    """Shows a tally while a job runs."""

    def __enter__(self) -> "Display":
        """Begin to show."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End, and leave the last state on the screen or in the log."""

    def show(self, tally: Tally) -> None:
        """Show the present state; called several times a second."""


class _TwoLines(Progress):
    """A bar with the number of rows, and below it a line of its own for everything else."""

    details = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar, and the line below it, which fills the terminal's width."""
        yield from super().get_renderables()
        yield Text(self.details, overflow="fold")


class Bar:
    """A progress bar, for a terminal."""

    def __init__(self, console: Console) -> None:
        columns = (BarColumn(30), TextColumn("{task.fields[rows]}"))
        self._progress = _TwoLines(*columns, console=console)
        self._task = self._progress.add_task("", total=1.0, rows="starting")

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, tally: Tally) -> None:
        """Move the bar."""
        self._progress.details = tally.details()
        self._progress.update(
            self._task, total=max(tally.rows_total, 1), completed=tally.rows_done, rows=tally.rows_text()
        )


class Lines:
    """Lines for logs such as `ray job logs`: one every LINE_EVERY_S seconds, and one at the end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown = 0.0
        self._last: Tally | None = None

    def __enter__(self) -> "Lines":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._last:
            self._print(self._last)

    def show(self, tally: Tally) -> None:
        """Print a line if LINE_EVERY_S seconds have passed since the last one."""
        self._last = tally
        if time.monotonic() - self._shown >= LINE_EVERY_S:
            self._shown = time.monotonic()
            self._print(tally)

    def _print(self, tally: Tally) -> None:
        self._console.print(tally.line(), highlight=False, soft_wrap=True)


def display(console: Console) -> Display:
    """A bar if the console is a terminal, else lines."""
    return Bar(console) if console.is_terminal else Lines(console)
