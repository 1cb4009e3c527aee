"""Plant mistakes in copies of the repository, and print which test notices each.

python -m tools.mutants --num 12
"""

import random
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Annotated

import typer

from tools.mutants.planted import MisplacedError, Mistake, planted_mistakes
from tools.mutants.trial import Copy, Verdict


def main(
    num: Annotated[int, typer.Option(help="Take only this many, at random; 0: all.")] = 0,
    seed: Annotated[int | None, typer.Option(help="Repeat the choice of an earlier --num.")] = None,
    only: Annotated[str, typer.Option(help="Take only those with this in their file or name.")] = "",
    jobs: Annotated[int, typer.Option(help="Trials at a time.")] = 2,
    show: Annotated[bool, typer.Option(help="Print what pytest said about each that lived.")] = False,
) -> None:
    """Plant mistakes one by one, and print for each the test that noticed it; exit with 1 if one lived."""
    try:
        mistakes = _chosen(num, seed, only)
    except MisplacedError as error:
        raise typer.BadParameter(str(error)) from error
    tests = sorted({test for mistake in mistakes for test in mistake.tests})
    with _copies(jobs) as copies:
        print(f"running their {len(tests)} tests and test files without a mistake", flush=True)
        if noticed := copies[0].run(tests).noticed_by:
            print(f"{noticed} fails without any mistake, so it would prove nothing")
            raise typer.Exit(2)
        num_lived = 0
        for mistake, verdict in _verdicts(mistakes, copies):
            num_lived += not verdict.noticed_by
            found = f"noticed by {verdict.noticed_by}" if verdict.noticed_by else "LIVED"
            print(f"{mistake.file}: {mistake.name}: {found}", flush=True)
            if show and not verdict.noticed_by:
                print(verdict.output, flush=True)
    print(f"mutants {len(mistakes)}, lived {num_lived}")
    raise typer.Exit(int(num_lived > 0))


def _chosen(num: int, seed: int | None, only: str) -> list[Mistake]:
    """The mistakes to plant; prints how to choose the same ones again."""
    mistakes = [mistake for mistake in planted_mistakes() if only in mistake.file or only in mistake.name]
    if not mistakes:
        raise MisplacedError(f"no planted mistake has {only!r} in its file or name")
    if not 0 < num < len(mistakes):
        return mistakes
    seed = random.randrange(10_000) if seed is None else seed
    print(f"{num} of {len(mistakes)} mistakes; --seed {seed} takes the same ones")
    return random.Random(seed).sample(mistakes, num)


@contextmanager
def _copies(num: int) -> Iterator[list[Copy]]:
    with tempfile.TemporaryDirectory(prefix="darkroom-mutants-") as folder:
        yield [Copy(Path(folder) / str(i)) for i in range(num)]


def _verdicts(mistakes: Sequence[Mistake], copies: Sequence[Copy]) -> Iterator[tuple[Mistake, Verdict]]:
    """Each mistake and what its tests said, in order; as many trials at a time as there are copies."""
    free: SimpleQueue[Copy] = SimpleQueue()
    for copy in copies:
        free.put(copy)

    def try_out(mistake: Mistake) -> Verdict:
        copy = free.get()
        try:
            return copy.try_out(mistake)
        finally:
            free.put(copy)

    with ThreadPoolExecutor(len(copies)) as threads:
        yield from zip(mistakes, threads.map(try_out, mistakes), strict=True)


if __name__ == "__main__":
    typer.run(main)
