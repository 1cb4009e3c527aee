"""Images per second on a GPU, compared with the most that the GPU could do, in one sitting.

The models are Stable Diffusion 1.5 at 512x512 and XL at 1024x1024 in their published sizes, with random
weights, which are built on the device. Loops of plain diffusers and a darkroom worker run over the same
workloads. Each line of the table shows

- the images per second (the median of the rounds);
- the work in an image, counted on the modules;
- the share of the limit. The limit is the device's rate of large bfloat16 matrix products, divided by the
  work in an image;
- the share of the time in which the GPU worked;
- how often the host waited for the GPU, and the line of code that caused most of the waits.

    python -m benchmarks.gpu                                    # on a GPU
    python -m benchmarks.gpu --device cpu --tiny --budget-s 60  # the same code on small models, anywhere

Each line is printed as soon as it is measured. What does not fit in the budget is left out, and the table
says so. benchmarks/gpu-wheels.txt lists the packages that a machine with torch and transformers needs. On a
CPU the last columns mean little.
"""

import argparse
import os
import time
from collections.abc import Sequence

BEGUN = time.monotonic()
"""The budget counts from here, so that it includes the imports."""


def main(command_line: Sequence[str] | None = None, begun: float = BEGUN) -> None:
    """Print the tables."""
    options = arguments(command_line)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # Deferred: importing torch and diffusers takes seconds, which count.
    from benchmarks.sitting import gpu_sitting

    gpu_sitting.hold(options, begun)


def arguments(command_line: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line, or of the arguments that are given instead of it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    several = {"nargs": "+"}
    models, dtypes = ("sd15", "sdxl"), ("float16", "bfloat16", "float32")
    contenders = ("r0", "r0b", "darkroom", "r1")
    parser.add_argument(
        "--budget-s", type=float, default=480, help="seconds in all, imports included (%(default)s)"
    )
    parser.add_argument("--models", **several, choices=models, default=models, help="the models (both)")
    parser.add_argument(
        "--dtypes", **several, choices=dtypes, default=["bfloat16"], help="the dtypes (bfloat16)"
    )
    parser.add_argument(
        "--compile", **several, choices=("off", "on"), default=["off", "on"], help="batching.compile (both)"
    )
    parser.add_argument(
        "--contenders",
        **several,
        choices=contenders,
        default=contenders[:3],
        help="the plain loop, the loop over groups, a darkroom worker, its engine alone (all but r1)",
    )
    parts = ("rows", "lcm", "kernels")
    parser.add_argument(
        "--parts", **several, choices=parts, default=parts, help="the parts of the table, in this order (all)"
    )
    parser.add_argument("--rows", type=int, help="rows of each workload (64 for sd15, 24 for sdxl)")
    parser.add_argument("--batch", type=int, help="the largest batch (16 for sd15, 8 for sdxl)")
    parser.add_argument("--steps", type=int, default=20, help="mean number of denoising steps (%(default)s)")
    parser.add_argument(
        "--threads", type=int, default=4, help="darkroom's threads for decoding and encoding (%(default)s)"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="the device (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="use the demo's small models, at 64x64")
    return parser.parse_args(command_line)


if __name__ == "__main__":
    main()
