"""Train the small Stable Diffusion that draws shapes; all training images are drawn by this script.

    python -m tools.train_shapes --output models

It can be stopped at any time. The same command resumes from the checkpoints in --work.
"""

import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from schemas.wording.amounts import counted
from tools.shapes import family, world
from tools.shapes import model_parts as parts
from tools.shapes.autoencoder import train_decoder, train_vae
from tools.shapes.depth import train_estimator
from tools.shapes.painter import draw_latents, train_unet, with_depth
from tools.shapes.reader import train_text_encoder
from tools.shapes.training import Stage


def main(
    output: Annotated[Path, typer.Option(help="Folder for the finished checkpoints.")] = Path("models"),
    work: Annotated[Path, typer.Option(help="Folder for the training's own files.")] = Path(
        "out/train-shapes"
    ),
    seed: int = 0,
    vae_steps: int = 1700,
    decoder_steps: int = 1250,
    text_steps: int = 1200,
    unet_steps: int = 12_000,
    depth_unet_steps: int = 1500,
    depth_estimator_steps: int = 800,
    num_images: Annotated[int, typer.Option(help="Images to draw before the UNets' training.")] = 30_000,
    num_threads: int = 2,
) -> None:
    """Train the text encoder, the VAE and the UNet, then the siblings' own parts, and save everything."""
    torch.set_num_threads(num_threads)
    work.mkdir(parents=True, exist_ok=True)

    def stage(name: str, num_steps: int, learning_rate: float, ema_decay: float) -> Stage:
        return Stage(
            name=name, num_steps=num_steps, learning_rate=learning_rate, ema_decay=ema_decay, seed=seed
        )

    tokenizer = parts.tokenizer()
    text_encoder = train_text_encoder(stage("text", text_steps, 2e-3, 0.99), tokenizer, work)
    vae = train_vae(stage("vae", vae_steps, 2e-3, 0.995), work)
    deep_vae = train_decoder(stage("decoder", decoder_steps, 1e-3, 0.995), vae, work)
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    images = draw_latents(vae, world.some_scenes(rng, num_images), rng)
    torch.manual_seed(seed)
    unet = parts.unet()
    unet = train_unet(stage("unet", unet_steps, 1e-3, 0.997), unet, images, tokenizer, text_encoder, work)
    family.save_base(output, deep_vae, text_encoder, tokenizer, unet)
    family.save_ldm3d(output, deep_vae)

    deep_stage = stage("depth-unet", depth_unet_steps, 5e-4, 0.997)
    deep_unet = train_unet(deep_stage, with_depth(unet), images, tokenizer, text_encoder, work)
    estimator = train_estimator(stage("depth-estimator", depth_estimator_steps, 1e-3, 0.99), work)
    family.save_depth2img(output, deep_unet, estimator)
    for line in summary(output, work):
        print(line)


def summary(output: Path, work: Path) -> Iterator[str]:
    """Lines with the time and the last loss of each stage, the size of the checkpoints, and the machine."""
    entries = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]
    for last in {entry["stage"]: entry for entry in entries}.values():
        steps, minutes = counted(last["step"], "step"), last["spent_s"] / 60
        yield f"{last['stage']}: {steps} in {minutes:.0f} min, loss {last['loss']}"
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    threads = counted(torch.get_num_threads(), "thread")
    machine = f"{platform.machine()}, {threads}, torch {torch.__version__}"
    yield f"{output}: {size / 1e6:.1f} MB; {machine}"


if __name__ == "__main__":
    typer.run(main)
