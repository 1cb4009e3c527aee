"""Let the judge mark images that a checkpoint generates of scenes that its training never saw.

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
"""How many images a sheet has."""


def main(
    model: Annotated[Path, typer.Option(help="The checkpoint's folder.")] = Path("models/shapes"),
    task: Annotated[str, typer.Option(help=f"One of {', '.join(TASKS)}.")] = "text2img",
    num: Annotated[int, typer.Option(help="Number of images.")] = 500,
    seed: int = 1,
    num_inference_steps: int = 20,
    guidance_scale: float = 2.0,
    strength: Annotated[float | None, typer.Option(help="The strength of img2img and inpaint.")] = None,
    scheduler: Annotated[str, typer.Option(help="A diffusers class; default: the checkpoint's own.")] = "",
    num_threads: int = 2,
    sheet: Annotated[Path | None, typer.Option(help=f"Save the first {SHEET} images as one PNG.")] = None,
) -> None:
    """Generate images of held-out scenes, and print how many facts of the scenes the images show."""
    torch.set_num_threads(num_threads)
    values = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    if strength is not None:
        values["strength"] = strength
    answers = TASKS[task](model, num, seed, scheduler, **values)
    if sheet:
        contact_sheet([answer.image for answer in answers[:SHEET]]).save(sheet)
    print_marks(answers)


def print_marks(answers: list[Answer]) -> None:
    """Print the share of images that show each fact, and the most frequent mistakes."""
    total = len(answers)
    for fact in FACTS:
        pairs = [(getattr(answer.scene, fact), getattr(answer.seen, fact)) for answer in answers]
        wrong = Counter(f"{expected} as {seen}" for expected, seen in pairs if expected != seen)
        worst = ", ".join(f"{mistake}: {times}" for mistake, times in wrong.most_common(4))
        print(f"{fact:<11}{100 - 100 * wrong.total() / total:6.1f} %   {worst}")
    print(f"{'all five':<11}{100 * sum(map(is_right, answers)) / total:6.1f} %   of {total}")
    outside = [_change_outside(answer) for answer in answers if answer.mask is not None]
    if outside:
        print(
            f"outside the mask, pixels changed by {np.mean(outside):.1f} of 255 on average; "
            f"the most in one image is {max(outside):.1f}"
        )


def is_right(answer: Answer) -> bool:
    """Whether the image shows all facts of the scene."""
    return all(getattr(answer.scene, fact) == getattr(answer.seen, fact) for fact in FACTS)


def _change_outside(answer: Answer) -> float:
    """The mean change of the pixels outside the mask, which inpainting should not change."""
    change = np.abs(answer.image.astype(float) - answer.before).mean(axis=2)
    return float(change[~answer.mask].mean())


def contact_sheet(images: list[Array], columns: int = 20) -> Image.Image:
    """One image with all images side by side, in rows of `columns`."""
    blank = np.zeros_like(images[0])
    filled = images + [blank] * (-len(images) % columns)
    starts = range(0, len(filled), columns)
    rows = [np.concatenate(filled[start : start + columns], axis=1) for start in starts]
    return Image.fromarray(np.concatenate(rows))


if __name__ == "__main__":
    typer.run(main)
