"""`batching.compile`: few shapes, no more graphs than the plan says, and the images that are made without it.

torch's back-end `eager` makes the guards and the graphs that each other one makes, and needs no C++ compiler.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel

from actors.engine.batching.batch_policy import Stage
from actors.engine.batching.merged_modules import MergePoint
from actors.engine.compiling.compiler import UNET_BLOCKS, Compiler
from actors.engine.compiling.shape_counts import ShapeCounts
from actors.engine.diffusers_engine import DiffusersEngine
from jobs.planning.graph_counts import graphs_a_size
from schemas.errors import SpecError
from schemas.spec.job_spec import BatchingSpec
from tests.support.checkpoints import demo
from tests.support.in_process import image_of, job_spec, make, model_cache, plan_for, write_rows

ROWS = [
    {"row_id": f"r{i}", "prompt": f"a fox, number {i}", "seed": i, "num_inference_steps": 2} for i in range(2)
]


class Graphs:
    """A back-end that counts its graphs, and runs them as they are."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, _: Any) -> Any:
        self.count += 1
        return graph.forward


@pytest.fixture
def graphs() -> Iterator[Graphs]:
    """The graphs of a test, which begins and ends with none."""
    torch._dynamo.reset()
    yield Graphs()
    torch._dynamo.reset()


def one_resolution(folder: Path) -> Path:
    """demo:sd with a UNet and a VAE of one resolution: they have few kinds of blocks, compiled soon."""
    pipeline = StableDiffusionPipeline.from_pretrained(demo("sd"), use_safetensors=True)
    torch.manual_seed(0)
    pipeline.unet = UNet2DConditionModel.from_config(
        pipeline.unet.config,
        block_out_channels=[32],
        layers_per_block=1,
        down_block_types=["CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D"],
    )
    pipeline.vae = AutoencoderKL.from_config(
        pipeline.vae.config,
        block_out_channels=[32],
        layers_per_block=1,
        down_block_types=["DownEncoderBlock2D"],
        up_block_types=["UpDecoderBlock2D"],
    )
    pipeline.save_pretrained(folder)
    return folder


def test_batches_have_few_sizes() -> None:
    """Steps of a quarter near the top; decoders get a quarter of a batch, or one image."""
    assert BatchingSpec(max_batch_rows=16).padded_images == (2, 4, 8, 12, 16)
    assert BatchingSpec(max_batch_rows=1).padded_images == (1,)
    assert BatchingSpec(max_batch_rows=16).decoded_images == (4, 1)
    assert BatchingSpec(max_batch_rows=1).decoded_images == (1,)


def test_exact_and_compiled_exclude_each_other() -> None:
    """Compiled code has bits of its own."""
    with pytest.raises(ValueError, match="exclude each other"):
        BatchingSpec(exact=True, compile=True)


def test_compiled_blocks_make_the_same_images(tmp_path: Path, graphs: Graphs) -> None:
    """Within 2 of 255, from as many graphs as the plan has counted."""
    model = {"models": {"sd": {"checkpoint": str(one_resolution(tmp_path / "sd"))}}}
    spec = job_spec(
        write_rows(tmp_path / "rows.parquet", ROWS),
        tmp_path / "compiled",
        batching={"max_batch_rows": 1, "compile": True},
        **model,
    )
    compiled = make(spec, DiffusersEngine(model_cache(spec), spec, graphs))
    plain = make(job_spec(tmp_path / "rows.parquet", tmp_path / "plain", **model))

    for row in ROWS:
        one, other = (
            np.asarray(image_of(made.row(row["row_id"])), dtype=np.int16) for made in (compiled, plain)
        )
        assert np.abs(one - other).max() <= 2
    assert graphs.count == graphs_a_size(plan_for(spec).job.models["sd"], spec.batching, {2})


def test_twelve_image_sizes_are_compiled_and_none_of_them_twice(graphs: Graphs) -> None:
    """More than torch's own limit of 8 allows; with two models of one shape as with one."""
    models = [unet_of_resnet_blocks().to(memory_format=torch.channels_last) for _ in range(2)]
    sizes = [(height, width) for height in (2, 3, 4) for width in (5, 6, 7, 8)]

    for each in models * 2:
        (point,) = Compiler((1,), graphs).compiled([unet_point(each)])
        for height, width in sizes:
            run(point, 2, height, width)

    assert graphs.count == 2 * len(sizes)
    assert all(
        block._compiled_call_impl is not None
        for block in models[0].modules()
        if type(block).__name__ in UNET_BLOCKS
    )


def unet_of_resnet_blocks() -> torch.nn.Module:
    """A UNet whose blocks have two shapes."""
    return UNet2DConditionModel(
        block_out_channels=[8],
        layers_per_block=1,
        down_block_types=["DownBlock2D"],
        mid_block_type=None,
        up_block_types=["UpBlock2D"],
        norm_num_groups=4,
        cross_attention_dim=8,
    ).eval()


def unet_point(unet: torch.nn.Module) -> MergePoint:
    """The merge point of a UNet."""
    return MergePoint(name="unet", module=unet, stage=Stage.DENOISE)


@torch.inference_mode()
def run(point: MergePoint, rows: int, height: int, width: int) -> Any:
    """What a UNet's compiled blocks give for latents of this shape."""
    assert point.forward is not None
    return point.forward(
        sample=torch.ones(rows, 4, height, width),
        timestep=torch.ones(rows),
        encoder_hidden_states=torch.ones(rows, 1, 8),
    )[0]


class ResnetBlock2D(torch.nn.Module):
    """A block of which the compiler makes another graph for each number."""

    number = 0

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return sample + self.number


class Surprising(torch.nn.Module):
    """A UNet whose block changes from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.block = ResnetBlock2D()

    def forward(self, sample: torch.Tensor, **_: Any) -> Any:
        self.block.number += 1
        return (self.block(sample),)


def test_more_graphs_than_shapes_are_an_error(graphs: Graphs) -> None:
    """It names torch's limit and the way out; torch would go on uncompiled, with only a warning."""
    compiler = Compiler((1,), graphs, ShapeCounts())
    (point,) = compiler.compiled([unet_point(Surprising())])
    run(point, 1, 2, 2)
    run(point, 1, 2, 3)

    with pytest.raises(SpecError, match=r"more than 2 graphs .*recompile_limit.*batching\.compile: false"):
        run(point, 1, 2, 2)


def test_a_decoders_batch_is_cut(graphs: Graphs) -> None:
    """Into images by the quarter of a batch, and single ones; none is padding."""
    seen: list[int] = []

    class Decoder(torch.nn.Module):
        def forward(self, sample: torch.Tensor) -> torch.Tensor:
            seen.append(len(sample))
            return 2 * sample

    point = MergePoint(name="vae.decoder", module=Decoder(), stage=Stage.DECODE)
    (compiled,) = Compiler((4, 1), graphs).compiled([point])
    sample = torch.rand(10, 4, 2, 2)

    assert compiled.forward is not None
    assert torch.equal(compiled.forward(sample=sample), 2 * sample)
    assert seen == [4, 4, 1, 1]


def test_a_machine_that_cannot_compile_says_so(tmp_path: Path, graphs: Graphs) -> None:
    """At once and for the whole job, instead of row by row."""
    batching = {"max_batch_rows": 4, "compile": True}
    spec = job_spec(write_rows(tmp_path / "rows.parquet", ROWS), tmp_path / "out", batching=batching)

    with pytest.raises(SpecError, match=r"torch\.compile does not work here(?s:.*)no C\+\+ compiler"):
        make(spec, DiffusersEngine(model_cache(spec), spec, without_compiler))


def without_compiler(*_: Any) -> Any:
    """What torch hands a graph to, on a machine where nothing can be done with it."""
    raise OSError("no C++ compiler")
