"""`batching.compile`: few shapes, and the images that there were without it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from actors.engine.diffusers_engine import DiffusersEngine
from actors.engine.quirks.compiling import COMPILED, ladder
from schemas.errors import SpecError
from schemas.spec.job_spec import BatchingSpec
from tests.support.checkpoints import demo
from tests.support.in_process import image_of, job_spec, make, model_cache, write_rows

ROWS = [
    {"row_id": f"r{i}", "prompt": f"a fox, number {i}", "seed": i, "num_inference_steps": 2} for i in range(2)
]


def test_batches_have_few_sizes() -> None:
    """An eighth, a quarter, a half, all of a batch with guidance."""
    assert [*ladder(16)] == [4, 8, 16, 32]
    assert [*ladder(1)] == [1, 2]


def test_exact_and_compiled_exclude_each_other() -> None:
    """Compiled code has bits of its own."""
    with pytest.raises(ValueError, match="exclude each other"):
        BatchingSpec(exact=True, compile=True)


def few_blocks(folder: Path) -> Path:
    """demo:sd with a UNet of one resolution: each kind of its blocks has few shapes, and is compiled soon."""
    pipeline = StableDiffusionPipeline.from_pretrained(demo("sd"), use_safetensors=True)
    torch.manual_seed(0)
    pipeline.unet = UNet2DConditionModel.from_config(
        pipeline.unet.config,
        block_out_channels=[32],
        down_block_types=["CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D"],
    )
    pipeline.save_pretrained(folder)
    return folder


def test_compiled_blocks_make_the_same_images(tmp_path: Path) -> None:
    """Within 2 of 255; and every block of the UNet is compiled, for one shape here."""
    model = {"models": {"sd": {"checkpoint": str(few_blocks(tmp_path / "sd"))}}}
    spec = job_spec(
        write_rows(tmp_path / "rows.parquet", ROWS),
        tmp_path / "compiled",
        batching={"max_batch_rows": 1, "compile": True},
        **model,
    )
    models = model_cache(spec)
    torch._dynamo.utils.counters.clear()
    compiled = make(spec, DiffusersEngine(models, spec))
    plain = make(job_spec(tmp_path / "rows.parquet", tmp_path / "plain", **model))

    for row in ROWS:
        one, other = (
            np.asarray(image_of(made.row(row["row_id"])), dtype=np.int16) for made in (compiled, plain)
        )
        assert np.abs(one - other).max() <= 2
    blocks = [
        each for each in models.get("sd").components["unet"].modules() if type(each).__name__ in COMPILED
    ]
    assert blocks
    assert all(block._compiled_call_impl is not None for block in blocks)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2


def test_a_machine_that_cannot_compile_says_so(tmp_path: Path) -> None:
    """At once and for the whole job, instead of row by row."""
    spec = job_spec(write_rows(tmp_path / "rows.parquet", ROWS), tmp_path / "out")
    models = model_cache(spec)

    def fail(*_: Any) -> None:
        torch.compile(torch.nn.ReLU(), backend=without_compiler)(torch.zeros(1))

    models.get("sd").components["unet"].conv_in.register_forward_pre_hook(fail)

    with pytest.raises(SpecError, match=r"torch\.compile does not work here"):
        make(spec, DiffusersEngine(models, spec))


def without_compiler(*_: Any) -> Any:
    """What torch hands a graph to, on a machine where nothing can be done with it."""
    raise OSError("no C++ compiler")
