"""Let the judge mark what a checkpoint draws of scenes that its training never saw.

python -m tools.judge_shapes --num 500 --seed 1
"""

from collections import Counter
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image

from tools.shapes.exam import FACTS, TASKS, Answer
from tools.shapes.world import Array

SHEET = 100
"""Pictures on a sheet."""


def main(
    model: Annotated[Path, typer.Option(help="The checkpoint's folder.")] = Path("models/shapes"),
    task: Annotated[str, typer.Option(help=f"One of {', '.join(TASKS)}.")] = "text2img",
    num: Annotated[int, typer.Option(help="Pictures.")] = 500,
    seed: int = 1,
    num_inference_steps: int = 20,
    guidance_scale: float = 2.0,
    strength: Annotated[float | None, typer.Option(help="Of img2img and inpainting.")] = None,
    scheduler: Annotated[str, typer.Option(help="A diffusers class; the checkpoint's own if left out.")] = "",
    num_threads: int = 2,
    sheet: Annotated[Path | None, typer.Option(help=f"Save the first {SHEET} pictures as one PNG.")] = None,
) -> None:
    """Have held-out scenes drawn, and say how many of their facts the pictures show."""
    torch.set_num_threads(num_threads)
    values = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    if strength is not None:
        values["strength"] = strength
    answers = TASKS[task](model, num, seed, scheduler, **values)
    if sheet:
        contact_sheet([answer.picture for answer in answers[:SHEET]]).save(sheet)
    tell(answers)


def tell(answers: list[Answer]) -> None:
    """Print each fact's share, and what was most often taken for what."""
    total = len(answers)
    for fact in FACTS:
        pairs = [(getattr(answer.wanted, fact), getattr(answer.seen, fact)) for answer in answers]
        wrong = Counter(f"{wanted} as {seen}" for wanted, seen in pairs if wanted != seen)
        worst = ", ".join(f"{what}: {times}" for what, times in wrong.most_common(4))
        print(f"{fact:<11}{100 - 100 * wrong.total() / total:6.1f} %   {worst}")
    print(f"{'all five':<11}{100 * sum(map(is_right, answers)) / total:6.1f} %   of {total}")
    outside = [_change_outside(answer) for answer in answers if answer.mask is not None]
    if outside:
        print(
            f"outside the mask a pixel changed by {np.mean(outside):.1f} of 255, at most {max(outside):.1f}"
        )


def is_right(answer: Answer) -> bool:
    """Whether the picture shows the whole scene."""
    return all(getattr(answer.wanted, fact) == getattr(answer.seen, fact) for fact in FACTS)


def _change_outside(answer: Answer) -> float:
    """How far an average pixel that inpainting was to leave alone has moved."""
    change = np.abs(answer.picture.astype(float) - answer.before).mean(axis=2)
    return float(change[~answer.mask].mean())


def contact_sheet(pictures: list[Array], columns: int = 20) -> Image.Image:
    """Pictures side by side, in rows."""
    blank = np.zeros_like(pictures[0])
    filled = pictures + [blank] * (-len(pictures) % columns)
    rows = [np.concatenate(filled[at : at + columns], axis=1) for at in range(0, len(filled), columns)]
    return Image.fromarray(np.concatenate(rows))


if __name__ == "__main__":
    typer.run(main)
