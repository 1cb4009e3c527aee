"""Figures of one run that are the same on every machine: the calls of the modules and their batch sizes."""

from collections.abc import Iterable, Mapping

from actors.engine.batching.merged_modules import CallCount
from benchmarks.contenders.local_contenders import Darkroom

HEADER = (
    "UNet batch",
    "UNet run / needed",
    "text encoder",
    "VAE encoder",
    "UNet",
    "VAE decoder",
    "decode batch",
    "loaded",
)
"""The column names. A batch's size is its mean number of images: with guidance an image is two UNet rows.

The columns from the text encoder to the VAE decoder are numbers of calls."""


def cells(darkroom: Darkroom) -> list[str]:
    """The values of the columns for darkroom's last run; the loads are those of all runs so far."""
    counts = darkroom.counts
    unet, decoder = counts["unet"], counts["vae.decoder"]
    return [
        f"{unet.images / unet.batches:.1f}",
        f"{(unet.rows_run + unet.rows_padded) / unet.rows_needed:.2f}",
        str(_batches(counts, "text_encoder", "text_encoder_2")),
        str(_batches(counts, "vae.encoder")),
        str(unet.batches),
        str(decoder.batches),
        f"{decoder.images / decoder.batches:.1f}",
        f"{_times(darkroom.models.num_loads)}, {darkroom.weights_mb:,.1f} MB",
    ]


def line(cells: Iterable[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def _batches(counts: Mapping[str, CallCount], *names: str) -> int:
    return sum(counts[name].batches for name in names if name in counts)


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"
