"""Whether darkroom is right on a GPU, in less than four minutes: a line for each check.

    python -m benchmarks.gpu_check
    python -m benchmarks.gpu_check --device cpu    # without the checks that need CUDA

The models are the demo's small ones. The exit code is 1 if a check is wrong. A check that was not made is
neither right nor wrong.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence


def main(command_line: Sequence[str] | None = None) -> int:
    """Print a line for each check, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="the device (%(default)s)")
    device = parser.parse_args(command_line).device
    begun = time.monotonic()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # Deferred: importing torch and diffusers takes seconds, and --help answers at once.
    from benchmarks.parity import device_checks

    verdicts = [*device_checks.print_all(device)]
    right, wrong, left = (verdicts.count(verdict) for verdict in ("right", "WRONG", "not made"))
    print(f"{right} right, {wrong} wrong, {left} not made, in {time.monotonic() - begun:.0f} s")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
