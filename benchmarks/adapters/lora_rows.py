"""The rate of rows that have LoRAs, beside that of the same rows without any.

One process makes each contender's rows in turn, round after round, from a small model with random weights.
The rows differ in prompt, seed, guidance and steps; each LoRA changes the attention of the UNet.

    python -m benchmarks.adapters.lora_rows [--rows 96] [--rank 16] [--size 128]
"""

import argparse
import json
import logging
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from actors.engine.diffusers_engine import DiffusersEngine
from actors.engine.pipelines.loading import LoadOptions
from actors.engine.pipelines.model_cache import ModelCache
from benchmarks.contenders.local_contenders import CAPACITY_BYTES, opened_rows
from benchmarks.contenders.noise_free import line
from benchmarks.race import median_rates, surroundings, timed
from benchmarks.workloads import different, write_rows
from demo.random_loras import save_lora
from jobs.planning.plan import make_plan
from jobs.survey.survey import make_survey
from models.demo_cache import demo_checkpoint
from schemas.spec.job_spec import JobSpec
from schemas.wording.amounts import counted

NUM_LORAS = 16
NONE_DECLARED = "no LoRAs in the spec"
CONTENDERS: Mapping[str, Callable[[int], Mapping[str, float]]] = {
    NONE_DECLARED: lambda _: {},
    "rows without LoRAs": lambda _: {},
    "one LoRA in all rows": lambda _: {"lora-0": 0.8},
    f"{NUM_LORAS} LoRAs, a row has one": lambda number: {f"lora-{number % NUM_LORAS}": 0.5 + number / 500},
    "a row has two of them": lambda number: {
        f"lora-{number % NUM_LORAS}": 0.5 + number / 500,
        f"lora-{(number + 5) % NUM_LORAS}": -0.3,
    },
}
"""By contender, the LoRAs of a row by its number."""


class Contender:
    """The engine over the rows of one contender, which are read once."""

    def __init__(
        self, name: str, loras: Mapping[str, str], folder: Path, options: argparse.Namespace
    ) -> None:
        rows = different(options.rows, options.size, options.steps)
        if name != NONE_DECLARED:
            rows = [row | {"loras": json.dumps(CONTENDERS[name](number))} for number, row in enumerate(rows)]
        model = {"checkpoint": "demo:sd", "loras": {} if name == NONE_DECLARED else loras}
        spec = JobSpec.model_validate(
            {
                "version": 1,
                "name": "loras",
                "input": {"path": str(write_rows(folder / f"{name}.parquet", rows))},
                "models": {"sd": model},
                "routes": {task: {"model": "sd"} for task in ("text2img", "img2img", "inpaint")},
                "default_route": "text2img",
                "output": {"path": str(folder / "out")},
                "safety": {"checker": "off"},
            }
        )
        plan = make_plan(make_survey(spec))[0]
        load = LoadOptions(device=torch.device("cpu"), with_checker=False)
        self._models = ModelCache(plan.job.checkpoints, load, CAPACITY_BYTES, plan.job.loras)
        self._spec = spec
        self._rows = [*opened_rows(plan)]
        self.rows_a_batch = 0.0
        """The mean number of images in a batch of the UNet in the last run."""

    def __call__(self) -> int:
        """Make all rows, and return their number."""
        engine = DiffusersEngine(self._models, self._spec)
        with ThreadPoolExecutor(1) as decoders:
            made = sum(result.problem is None for result in engine.generate(self._rows, decoders))
        unet = engine.counts["unet"]
        self.rows_a_batch = unet.images / unet.batches
        return made


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=96, help="rows of each contender (%(default)s)")
    parser.add_argument("--rank", type=int, default=16, help="rank of the LoRAs (%(default)s)")
    parser.add_argument("--size", type=int, default=128, help="pixels a side (%(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="mean number of steps (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (%(default)s)")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    checkpoint = demo_checkpoint("sd")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        loras = {
            f"lora-{seed}": str(
                save_lora(folder / f"{seed}.safetensors", checkpoint, seed=seed, rank=options.rank)
            )
            for seed in range(NUM_LORAS)
        }
        contenders = {name: Contender(name, loras, folder, options) for name in CONTENDERS}
        runs = {name: timed(contender, options.rows) for name, contender in contenders.items()}
        rates = median_rates(runs, options.rounds)
    print(
        f"{surroundings('torch', 'diffusers', 'peft')}; 1 torch thread, {counted(options.rows, 'row')} of "
        f"{options.size}x{options.size} pixels and {options.steps} steps on average, LoRAs of rank "
        f"{options.rank}, median of {counted(options.rounds, 'round')}\n"
    )
    print(line(["rows", "images/s", "time, of the first line's", "images in a UNet batch"]))
    print("|---|---|---|---|")
    for name, contender in contenders.items():
        ratio = rates[NONE_DECLARED] / rates[name]
        print(line([name, f"{rates[name]:.1f}", f"{ratio:.2f}", f"{contender.rows_a_batch:.1f}"]))


if __name__ == "__main__":
    main()
