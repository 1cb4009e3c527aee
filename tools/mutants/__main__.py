"""Plant mistakes in copies of the repository, and print which test notices each.

python -m tools.mutants --num 12
"""

import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from tools.mutants.planted import MisplacedError, Mistake, planted_mistakes
from tools.mutants.trial import Copy, Trial, Verdict, preload, wait_for_any


def main(
    num: Annotated[int, typer.Option(help="Take only this many, at random; 0: all.")] = 0,
    seed: Annotated[int | None, typer.Option(help="Repeat the choice of an earlier --num.")] = None,
    only: Annotated[str, typer.Option(help="Take only those with this in their file or name.")] = "",
    jobs: Annotated[int, typer.Option(help="Trials at a time.", min=1)] = 2,
    show: Annotated[bool, typer.Option(help="Print what pytest said about each that lived.")] = False,
) -> None:
    """Plant mistakes one by one, and print for each the test that noticed it; exit with 1 if one lived."""
    try:
        mistakes = _chosen(num, seed, only)
    except MisplacedError as error:
        raise typer.BadParameter(str(error)) from error
    preload()
    num_lived = 0
    with _copies(jobs) as copies:
        _refuse_failing(copies[0], mistakes)
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


def _refuse_failing(copy: Copy, mistakes: Sequence[Mistake]) -> None:
    """End the program if one of the tests fails without a mistake: it would notice each."""
    tests = sorted({test for mistake in mistakes for test in mistake.tests})
    print(f"running their {len(tests)} tests and test files without a mistake", flush=True)
    _, verdict = wait_for_any([Trial(copy, tests)])
    if verdict.noticed_by:
        print(verdict.output)
        print(f"{verdict.noticed_by} fails without any mistake, so it would prove nothing")
        raise typer.Exit(2)


def _verdicts(mistakes: Sequence[Mistake], copies: Sequence[Copy]) -> Iterator[tuple[Mistake, Verdict]]:
    """Each mistake and what its tests said, as they end; as many trials at a time as there are copies."""
    waiting, free = [*reversed(mistakes)], [*copies]
    trials: list[Trial] = []
    while waiting or trials:
        while waiting and free:
            mistake = waiting.pop()
            trials.append(Trial(free.pop(), mistake.tests, mistake))
        trial, verdict = wait_for_any(trials)
        trials.remove(trial)
        free.append(trial.copy)
        assert trial.mistake is not None, "each of these trials has a mistake"
        yield trial.mistake, verdict


if __name__ == "__main__":
    typer.run(main)
