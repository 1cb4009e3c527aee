"""One failing call costs no other row its image."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from actors.engine.diffusers_engine import DiffusersEngine
from schemas.errors import DeviceError
from schemas.systems.system_table import find_system
from tests.support.in_process import (
    Made,
    Record,
    drawn_image,
    encoded,
    job_spec,
    make,
    model_cache,
    outcomes_by_id,
    write_rows,
)

Arguments = dict[str, Any]

ROWS = [{"row_id": f"r{i}", "prompt": f"prompt {i}", "seed": i} for i in range(8)]


@pytest.fixture
def broken(tmp_path: Path) -> Callable[..., Made]:
    """Makes rows with a hook before or after one of the model's modules."""

    def run(
        module: str,
        hook: Callable[..., Any],
        *,
        after: bool = False,
        rows: Sequence[Record] = ROWS,
    ) -> Made:
        spec = job_spec(
            write_rows(tmp_path / "rows.parquet", rows),
            tmp_path / "out",
            models={"sd": {"checkpoint": "demo:sd"}},
            batching={"max_batch_rows": 8},
        )
        models = model_cache(spec)
        system = find_system("sd", "text2img")
        assert system is not None
        part = attrgetter(module)(models.get("sd").pipeline(system, None))
        with hooked(part, hook, after=after):
            return make(spec, DiffusersEngine(models, spec))

    return run


@contextmanager
def hooked(module: torch.nn.Module, hook: Callable[..., Any], *, after: bool) -> Iterator[None]:
    if after:
        handle = module.register_forward_hook(hook)
    else:
        handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def test_a_batch_that_does_not_fit_is_halved(broken: Callable[..., Made]) -> None:
    """With memory for two images of guidance, eight rows are made in four calls, and none fails."""
    sizes = []

    def only_two(module: torch.nn.Module, args: tuple[torch.Tensor, ...], kwargs: Arguments) -> None:
        sizes.append(args[0].shape[0] // 2)
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    made = broken("unet.conv_in", only_two)

    assert set(outcomes_by_id(made).values()) == {"ok"}
    assert sizes[:3] == [8, 4, 2]


def test_an_image_that_does_not_fit_alone_fails_alone(broken: Callable[..., Made]) -> None:
    """Its row says so; the job goes on."""

    def never(module: torch.nn.Module, args: tuple[torch.Tensor, ...], kwargs: Arguments) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    made = broken("unet.conv_in", never)

    assert set(outcomes_by_id(made).values()) == {"out_of_memory"}
    assert len(made.rows) == len(ROWS)


def test_a_row_that_raises_fails_alone(broken: Callable[..., Made]) -> None:
    """Its seven neighbours in the batch are made all the same."""
    marked: list[torch.Tensor] = []

    def reject(module: torch.nn.Module, args: tuple[torch.Tensor, ...], kwargs: Arguments) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        if not marked:
            marked.append(ids[3].clone())
        if any(torch.equal(row, marked[0]) for row in ids):
            raise ValueError("cannot read this prompt")

    made = broken("text_encoder.embeddings", reject)

    assert outcomes_by_id(made)["r3"] == "generation_error"
    assert list(outcomes_by_id(made).values()).count("ok") == 7
    failed = made.row("r3")
    assert failed["image"] is None
    assert "cannot read this prompt" in failed["error_message"]


def test_a_lost_device_is_no_fault_of_the_rows(broken: Callable[..., Made], tmp_path: Path) -> None:
    """Nothing is recorded: the process has to be replaced before any row can be judged."""

    def lose(*_: Any) -> None:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    with pytest.raises(DeviceError, match="CUDA error: unspecified launch failure"):
        broken("unet.conv_in", lose)

    assert not (tmp_path / "out" / "data").exists()


def test_an_image_of_nan_fails_alone(broken: Callable[..., Made]) -> None:
    """It would come out black, and nobody would know."""

    def spoil(module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        output[5] = float("nan")
        return output

    made = broken("vae.decoder.conv_out", spoil, after=True)

    assert outcomes_by_id(made)["r5"] == "nonfinite_image"
    assert list(outcomes_by_id(made).values()).count("ok") == 7


def test_a_depth_map_of_nan_fails_alone(tmp_path: Path) -> None:
    """Though its image is well."""
    spec = job_spec(
        write_rows(tmp_path / "rows.parquet", ROWS[:3]),
        tmp_path / "out",
        models={"rgbd": {"checkpoint": "demo:ldm3d-4c"}},
        routes={"ldm3d": {"model": "rgbd", "num_inference_steps": 2}},
        default_route="ldm3d",
    )
    models = model_cache(spec)

    def spoil(module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        output[1, 3] = float("nan")
        return output

    with hooked(models.get("rgbd").components["vae"].decoder.conv_out, spoil, after=True):
        made = make(spec, DiffusersEngine(models, spec))

    assert outcomes_by_id(made) == {"r0": "ok", "r1": "nonfinite_image", "r2": "ok"}


def flattened(module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    output[-1] = 9.0
    return output


def test_an_image_of_one_colour_fails_alone(broken: Callable[..., Made]) -> None:
    """Values that overflow without becoming NaN come out white or black, which no image is."""
    made = broken("vae.decoder.conv_out", flattened, after=True)

    assert outcomes_by_id(made)["r7"] == "constant_image"
    assert made.row("r7")["error_message"].startswith("the model gave RGB (255, 255, 255) in every pixel;")
    assert made.row("r7")["image"] is None
    assert list(outcomes_by_id(made).values()).count("ok") == 7


def test_an_image_with_a_border_of_one_colour_is_made(broken: Callable[..., Made]) -> None:
    """Its first line alone says nothing."""

    def bordered(
        module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor:
        output[:, :, 0] = 9.0
        return output

    made = broken("vae.decoder.conv_out", bordered, after=True)

    assert set(outcomes_by_id(made).values()) == {"ok"}


def test_an_image_of_one_colour_may_stay_one(broken: Callable[..., Made]) -> None:
    """A white page that is enlarged or varied is rightly white: its row is made, another's is not."""
    white, drawn = Image.new("RGB", (64, 64), "white"), Image.radial_gradient("L").resize((64, 64))
    rows = [
        {
            "row_id": name,
            "prompt": "x",
            "seed": 1,
            "task": "img2img",
            "strength": 0.5,
            "image": encoded(picture),
        }
        for name, picture in (("white", white), ("drawn", drawn))
    ]

    def all_white(
        module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor:
        return output.fill_(9.0)

    made = broken("vae.decoder.conv_out", all_white, after=True, rows=rows)

    assert outcomes_by_id(made) == {"white": "ok", "drawn": "constant_image"}


def test_a_row_with_one_bad_image_of_three_fails_as_a_whole(broken: Callable[..., Made]) -> None:
    """One row, one outcome."""

    def spoil(module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        output[1] = float("nan")
        return output

    made = broken("vae.decoder.conv_out", spoil, after=True, rows=[ROWS[0] | {"num_images_per_prompt": 3}])

    assert outcomes_by_id(made) == {"r0": "nonfinite_image"}
    assert len(made.rows) == 1


def test_rows_whose_images_are_all_damaged_have_their_outcomes(broken: Callable[..., Made]) -> None:
    """No call follows that could bring them along."""
    image = drawn_image()["bytes"]
    cut_off = {"task": "img2img", "image": {"bytes": image[: len(image) // 2], "path": None}}

    made = broken("unet", lambda *_: None, rows=[row | cut_off for row in ROWS])

    assert outcomes_by_id(made) == {row["row_id"]: "invalid_image" for row in ROWS}


def test_a_batch_stays_within_max_batch_rows(broken: Callable[..., Made]) -> None:
    """Several images per row count as so many."""
    sizes = []

    def count(module: torch.nn.Module, args: tuple[torch.Tensor, ...], kwargs: Arguments) -> None:
        sizes.append(args[0].shape[0] // 2)

    broken("unet.conv_in", count, rows=[row | {"num_images_per_prompt": 3} for row in ROWS])

    assert max(sizes) == 8
    assert set(sizes) == {8}


@pytest.mark.parametrize("max_batch_rows", [1, 3])
def test_a_batch_may_be_smaller_than_four_rows(tmp_path: Path, max_batch_rows: int) -> None:
    """Every row is made, one call for each."""
    rows = write_rows(tmp_path / "rows.parquet", ROWS[:5])
    spec = job_spec(rows, tmp_path / "out", batching={"max_batch_rows": max_batch_rows})
    engine = DiffusersEngine(model_cache(spec), spec)

    made = make(spec, engine)

    assert set(outcomes_by_id(made).values()) == {"ok"}
    assert engine.counts["vae.decoder"].rows_run == 5
