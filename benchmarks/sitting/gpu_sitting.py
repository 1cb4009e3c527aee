"""The whole sitting: the machine, the limit, and the table."""

import argparse
import logging
import time

import torch
from diffusers.utils.logging import disable_progress_bar

from benchmarks.device.limits import matrix_rate
from benchmarks.device.time_budget import Budget
from benchmarks.race import surroundings
from benchmarks.sitting.gpu_cases import cases
from benchmarks.sitting.gpu_lines import Sitting


def hold(options: argparse.Namespace, begun: float) -> None:
    """Measure and print what fits in `options.budget_s` seconds since `begun`, a monotonic time."""
    started_s = time.monotonic() - begun
    budget = Budget(options.budget_s - started_s)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch finds no CUDA device; to try the script without one, add --device cpu --tiny")
    logging.disable(logging.WARNING)
    disable_progress_bar()
    if device.type == "cpu":
        torch.set_num_threads(options.threads)
    libraries = surroundings("torch", "diffusers", "transformers")
    print(f"{libraries}, {name_of(device)}; started in {started_s:.1f} s")
    limit = matrix_rate(device)
    print(f"{limit:,.2f} TFLOP/s in large bfloat16 matrix products: the limit\n", flush=True)
    Sitting([*cases(options, device)], options.contenders, budget, limit).print_table()


def name_of(device: torch.device) -> str:
    """The GPU's own name, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
