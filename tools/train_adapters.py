"""Train the LoRA and the ControlNet for the small Stable Diffusion that draws shapes.

    python -m tools.train_adapters --output models

It can be stopped at any time. The same command resumes from the checkpoints in --work.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import StableDiffusionPipeline

from tools.shapes import exam, family, small_adapters
from tools.shapes.training import Stage
from tools.train_shapes import summary


def main(
    output: Annotated[Path, typer.Option(help="Folder of the checkpoint, and for its adapters.")] = Path(
        "models"
    ),
    work: Annotated[Path, typer.Option(help="Folder for the training's own files.")] = Path(
        "out/train-adapters"
    ),
    seed: int = 0,
    lora_steps: int = 350,
    net_steps: int = 1600,
    num_images: Annotated[int, typer.Option(help="Images to draw before each training.")] = 3000,
    num_threads: int = 2,
) -> None:
    """Train both on the finished checkpoint, which does not change, and save them beside it."""
    torch.set_num_threads(num_threads)
    work.mkdir(parents=True, exist_ok=True)

    def pipeline() -> StableDiffusionPipeline:
        return exam.load(StableDiffusionPipeline, output / family.BASE)

    def stage(name: str, num_steps: int, learning_rate: float) -> Stage:
        return Stage(name=name, num_steps=num_steps, learning_rate=learning_rate, ema_decay=0.99, seed=seed)

    if lora_steps:
        base = pipeline()
        images = small_adapters.night_images(base, num_images, seed)
        weights = small_adapters.train_lora(stage("lora", lora_steps, 5e-3), base, images, work)
        family.save_lora(output, weights)
    if net_steps:
        base = pipeline()
        images = small_adapters.outlined_images(base, num_images, seed)
        net = small_adapters.train_control_net(stage("control-net", net_steps, 1e-3), base, images, work)
        family.save_control_net(output, net)
    for line in summary(output, work):
        print(line)


if __name__ == "__main__":
    typer.run(main)
