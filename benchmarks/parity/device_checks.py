"""What must hold on a device. Each check returns what it saw, and raises AssertionError if it is wrong."""

import logging
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from diffusers.utils.logging import disable_progress_bar

from benchmarks.device.full_size import VAE
from benchmarks.device.gpu_watch import counted_waits
from benchmarks.parity import documented_waits
from benchmarks.parity.device_jobs import Generated, empty_cache, generated
from benchmarks.parity.drawn_images import Record
from benchmarks.parity.plain_diffusers import ROWS, VARIED, Values, expected, row, stored_values
from demo import small_components

MEAN_LEVELS = {"float16": 2.0, "bfloat16": 4.0}
"""How far the other rows of a batch may move an image on average, in levels of 255.

Half precision rounds in every layer, and differently in other company.
"""
DEPTH_LEVELS = 257
"""Levels of a depth map (65535) in a level of an image (255)."""
MIXED = [*ROWS, *VARIED[::4]]
ONE_EACH = [*{(values["model"], values["task"]): values for values in reversed(ROWS)}.values()]
"""A row of each system, for a CPU, where half precision is slow."""
NUM_DECODED, DECODED_SIDE = 16, 1024
SHARE_OF_PEAK = 0.6
"""The memory that is allowed in the check of halving, as a share of what the job takes without a limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One fact about a device."""

    name: str
    run: Callable[[], str]
    needs_cuda: bool = False


def all_checks(device: str) -> list[Check]:
    """The checks in their order: a CUDA error comes last, and in a process of its own."""
    parity = [
        Check(name=f"every system in {dtype}, {how}", run=partial(every_system, device, dtype, exact=exact))
        for dtype in MEAN_LEVELS
        for how, exact in (("merged", False), ("exact to the bit", True))
    ]
    return [
        *parity,
        Check(name="a batch that does not fit is halved", run=halving, needs_cuda=True),
        Check(name=f"a decode of {NUM_DECODED} large images", run=partial(large_decode, device)),
        Check(
            name="as many waits as pretended, with every scheduler",
            run=partial(waits, device),
            needs_cuda=True,
        ),
        Check(name="a CUDA error ends the process", run=cuda_error, needs_cuda=True),
    ]


def print_all(device: str) -> Iterator[str]:
    """Make all checks and print a line for each; the verdicts are `right`, `WRONG` and `not made`."""
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch finds no CUDA device; for the checks that need none, add --device cpu")
    logging.disable(logging.WARNING)
    disable_progress_bar()
    for check in all_checks(device):
        begun = time.monotonic()
        verdict, text = verdict_of(check, device)
        print(f"{verdict:8} {check.name}: {text} ({time.monotonic() - begun:.0f} s)", flush=True)
        yield verdict


def verdict_of(check: Check, device: str) -> tuple[str, str]:
    """(verdict, what was seen)."""
    if check.needs_cuda and device != "cuda":
        return "not made", "it needs a CUDA device"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return "right", check.run()
    except Exception as error:  # noqa: BLE001  # Whatever it is, the other checks are made.
        return "WRONG", f"{type(error).__name__}: {error}"


def every_system(device: str, dtype: str, *, exact: bool) -> str:
    """Compare darkroom's images of every system with those of plain diffusers on the same device."""
    rows = MIXED if device == "cuda" else ONE_EACH
    job = generated(rows, device, dtype, exact=exact)
    limit = 0.0 if exact else MEAN_LEVELS[dtype]
    wrong, largest = [], 0.0
    for values in rows:
        output = job.rows[values["row_id"]]
        if output["status"] != "ok":
            wrong.append(f"{values['row_id']} ({output['error_code']})")
            continue
        levels = distance(stored_values(output), expected(values["row_id"], device, getattr(torch, dtype)))
        largest = max(largest, levels)
        if levels > limit:
            wrong.append(f"{values['row_id']} ({levels:.2f})")
    assert not wrong, f"{len(wrong)} of {len(rows)} rows differ by more than {limit:g}: {', '.join(wrong)}"
    return f"{len(rows)} rows, at most {largest:.2f} of {limit:g} levels on average"


def distance(
    ours: tuple[Values, Values | None], plain: tuple[Values, Values | None], levels: int = DEPTH_LEVELS
) -> float:
    """How far an image or its depth map is from the expected one on average, in levels of 255."""
    (image, depth), (plain_image, plain_depth) = ours, plain
    image_distance = float(np.abs(image - plain_image).mean())
    if depth is None or plain_depth is None:
        return image_distance
    return max(image_distance, float(np.abs(depth - plain_depth).mean()) / levels)


def halving() -> str:
    """Generate images with less memory than a whole batch takes; they must be those without a limit."""
    rows = [row(f"r{i}", "sd", "text2img", seed=i, height=512, width=512) for i in range(32)]
    batching = {"max_batch_rows": 32}
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    free = generated(rows, "cuda", "float16", **batching)
    limit = before + SHARE_OF_PEAK * (torch.cuda.max_memory_allocated() - before)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    try:
        tight = generated(rows, "cuda", "float16", **batching)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    compare(rows, free, tight, MEAN_LEVELS["float16"])
    again = sum(count.rows_run - count.rows_needed for count in tight.counts.values())
    assert again > 0, f"no batch was halved within {limit / 1e6:,.0f} MB"
    return f"{again} module rows ran again within {limit / 1e6:,.0f} MB, and all {len(rows)} images are right"


def compare(rows: list[Record], free: Generated, tight: Generated, limit: float) -> None:
    """Raise AssertionError if an image of one job is not that of the other."""
    for values in rows:
        ours, theirs = (stored_values(job.rows[values["row_id"]]) for job in (tight, free))
        assert distance(ours, theirs) <= limit, f"{values['row_id']} differs"


def large_decode(device: str) -> str:
    """Decode images in one batch, whose activations have more than 2**31 values, and one by one."""
    on_gpu = device == "cuda"
    settings = {} if on_gpu else {"block_out_channels": (16, 16, 32, 32), "layers_per_block": 1}
    side = DECODED_SIDE if on_gpu else 64
    torch.manual_seed(0)
    with torch.device(device), torch.inference_mode():
        vae = small_components.AutoencoderKL(**VAE | settings, norm_num_groups=8).to(torch.bfloat16)
        latents = torch.randn(NUM_DECODED, 4, side // 8, side // 8, dtype=torch.bfloat16)
        together = vae.decode(latents).sample.float()
        alone = torch.cat([vae.decode(latents[i : i + 1]).sample.float() for i in range(NUM_DECODED)])
    assert bool(together.isfinite().all()), "the batch has values that are not finite"
    # Pixels go from -1 to 1.
    levels = float((together - alone).abs().flatten(1).mean(1).max()) * 255 / 2
    limit = MEAN_LEVELS["bfloat16"]
    assert levels <= limit, f"an image differs by {levels:.2f} levels on average; {limit:g} are allowed"
    return f"{NUM_DECODED} images of {side}x{side}, at most {levels:.2f} of {limit:g} levels on average"


def waits(device: str) -> str:
    """Count how often the host waits for the device: as often as for the pretended one of the tests."""
    rows = [*documented_waits.rows()]
    expected = sum(documented_waits.waits_of(row["scheduler"], row["task"]) for row in rows)
    models = empty_cache(device, "float16")
    generated(rows, device, "float16", models=models)
    # The weights are on the device by now.
    with counted_waits(torch.device(device)) as counted:
        job = generated(rows, device, "float16", models=models)
    failed = [row["row_id"] for row in job.rows.values() if row["status"] != "ok"]
    assert not failed, f"{', '.join(failed)} failed"
    (line, number), *_ = counted.most_common(1) or [("nowhere", 0)]
    text = f"{counted.total()} for {len(rows)} rows, {expected:g} documented"
    assert counted.total() == expected, f"{text}; most of them at {line} ({number})"
    return text


def cuda_error() -> str:
    """Run a worker's process whose device fails; it must end by itself, with the exit code 1."""
    command = [sys.executable, "-m", "benchmarks.parity.faulty_worker"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 1, f"exit code {ended.returncode}: {ended.stderr[-300:]}"
    assert "DeviceError" in ended.stdout, f"{ended.stdout!r} has no DeviceError"
    return ended.stdout.strip()
