"""Facts about the rules that every row is held against, before and during a job."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.images.image_uris import UriJudge
from actors.images.spool import Spool
from actors.inputs.input_file import InputFile, RowBatch
from actors.rows.checks import MAX_IMAGES_PER_ROW, MAX_SEED, check_batch
from actors.rows.routing import ResolvedRoute, Router, Unroutable
from actors.rows.row import Row, build_rows
from schemas.columns.input_columns import map_columns
from schemas.columns.input_schemas import InputSchemas
from schemas.columns.output_columns import IMAGE_TYPE
from schemas.errors import RowError
from schemas.job import NO_MODEL
from schemas.spec.job_spec import InputSpec, JobSpec
from schemas.systems.model_card import ModelCard
from schemas.systems.schedulers import SCHEDULERS
from tests.support.checkpoints import model_card

Values = dict[str, Any]

IMAGE = {"bytes": b"not opened by these checks", "path": None}
MASKED = {"image": IMAGE, "mask_image": IMAGE}
TYPES = {
    "row_id": pa.string(),
    "task": pa.string(),
    "model": pa.string(),
    "prompt": pa.string(),
    "image": IMAGE_TYPE,
    "mask_image": IMAGE_TYPE,
    "seed": pa.int64(),
    "num_images_per_prompt": pa.int64(),
    "num_inference_steps": pa.int64(),
    "guidance_scale": pa.float64(),
    "guidance_rescale": pa.float64(),
    "strength": pa.float64(),
    "denoising_start": pa.float64(),
    "denoising_end": pa.float64(),
    "height": pa.int64(),
    "width": pa.int64(),
    "eta": pa.float64(),
    "clip_skip": pa.int64(),
    "scheduler": pa.string(),
}


def card(family: str, size: int) -> ModelCard:
    return model_card(family=family, height=size, width=size, scheduler_settings={"skip_prk_steps": True})


MODELS = {
    "sd": card("sd", 512),
    "xl": card("sdxl", 1024),
    "fill": card("sd-inpaint", 512),
    "x4": card("upscale", 512),
    "x2": card("latent-upscale", 512),
    "vary": card("variation", 512),
}
SPEC = JobSpec.model_validate(
    {
        "version": 1,
        "name": "checks",
        "input": {"path": "x"},
        "models": {name: {"checkpoint": "a/b"} for name in MODELS},
        "routes": {
            "text2img": {"model": "sd"},
            "img2img": {"model": "sd", "num_inference_steps": 10},
            "inpaint": {"model": "fill"},
            "fill": {"task": "text2img", "model": "sd", "then": ["inpaint"]},
            "refine": {"task": "img2img", "model": "xl", "num_inference_steps": 3},
            "poster": {"task": "text2img", "model": "xl", "height": 768, "width": 512},
            "upscale": {"model": "x4"},
            "large": {"task": "text2img", "model": "sd", "then": ["upscale"]},
            "larger": {"task": "text2img", "model": "sd", "then": ["upscale", "img2img"]},
            "latent_upscale": {"model": "x2"},
            "doubled": {"task": "text2img", "model": "sd", "then": ["latent_upscale"]},
            "vary": {"task": "variation", "model": "vary"},
            "resized": {"task": "inpaint", "model": "sd", "height": 512, "width": 4096},
            "square": {"task": "inpaint", "model": "sd", "height": 64},
            "squared": {"task": "text2img", "model": "sd", "then": ["square", "latent_upscale"]},
        },
        "default_route": "text2img",
        "output": {"path": "out"},
    }
)


JUDGE = UriJudge("/in/rows.parquet")


def input_file(rows: Sequence[Values], types: Mapping[str, pa.DataType] = TYPES) -> InputFile:
    """Write rows as Parquet and open them; only the columns that some row has are there."""
    names = [name for name in types if any(name in row for row in rows)]
    table = pa.table({name: pa.array([row.get(name) for row in rows], types[name]) for name in names})
    source = io.BytesIO()
    pq.write_table(table, source, row_group_size=3)
    return InputFile(source, map_columns(InputSchemas({"x": table.schema}), InputSpec(path="x")))


def problems_in(batches: Sequence[RowBatch]) -> dict[int, tuple[str, str]]:
    router = Router(SPEC, MODELS)
    return {
        batch.first_row + row: (problem.code, problem.message)
        for batch in batches
        for row, problem in check_batch(batch, router, MODELS, JUDGE).problems.items()
    }


def problem_of(row: Values, types: Mapping[str, pa.DataType] = TYPES) -> tuple[str, str] | None:
    with input_file([row], types) as opened:
        return problems_in(list(opened.read_rows(0))).get(0)


def built(row: Values, types: Mapping[str, pa.DataType] = TYPES) -> Row:
    with input_file([row], types) as opened:
        (batch,) = opened.read_rows(0)
        checked = check_batch(batch, Router(SPEC, MODELS), MODELS, JUDGE)
        return next(build_rows(checked, [0], file_name="f.parquet", first_index=0, job_seed=0, spool=Spool()))


GOOD: list[Values] = [
    {"prompt": "a fox"},
    {"prompt": ""},
    {"prompt": "x", "task": None, "model": None},
    {"prompt": "x", "task": "", "model": ""},
    {"prompt": "x", "task": "poster"},
    {"prompt": "x", "model": "xl"},
    {"prompt": "x", "task": "img2img", "image": IMAGE},
    {"prompt": "x", "task": "img2img", "image": {"bytes": None, "path": "a.png"}},
    {"prompt": "x", "task": "inpaint", "image": IMAGE, "mask_image": IMAGE},
    {"prompt": "x", "task": "inpaint", "model": "sd", "image": IMAGE, "mask_image": IMAGE},
    {"prompt": "x", "seed": 0},
    {"prompt": "x", "seed": MAX_SEED},
    {"prompt": "x", "num_images_per_prompt": MAX_IMAGES_PER_ROW},
    {"prompt": "x", "num_inference_steps": 1, "guidance_scale": 0.0, "guidance_rescale": 1.0, "eta": 1.0},
    {"prompt": "x", "num_inference_steps": 1000, "guidance_scale": 100.0, "clip_skip": 32},
    {"prompt": "x", "height": 8, "width": 8192},
    {"prompt": "x", "height": 2048, "width": 2048},
    {"prompt": "x", "height": 2048, "width": 2048, "task": "large"},
    {"prompt": "x", "height": 512, "width": 512, "task": "larger"},
    {"prompt": "x", "task": "squared", "mask_image": IMAGE, "height": 72, "width": 64},
    {"prompt": "x", "scheduler": "HeunDiscreteScheduler"},
    {"prompt": "x", "task": "img2img", "image": IMAGE, "strength": 0.1},
    {"prompt": "x", "task": "img2img", "image": IMAGE, "strength": 1.0, "num_inference_steps": 1},
    # XL asks for the one or the other.
    {"prompt": "x", "task": "refine", "image": IMAGE, "strength": 0.1, "denoising_start": 0.5},
    {"prompt": "x", "task": "refine", "image": IMAGE, "denoising_start": 0.5, "denoising_end": 0.9},
    {"prompt": "x", "task": "fill", "mask_image": IMAGE},
    {"prompt": "x", "task": "doubled", "height": 64, "width": 192},
    {"prompt": None, "task": "vary", "image": IMAGE},
    # Parameters that the row's task does not have are another route's business.
    {"prompt": "x", "strength": 0.0},
    {"prompt": "x", "task": "img2img", "image": IMAGE, "height": 7},
]

BAD: list[tuple[Values, str, str]] = [
    ({"prompt": None}, "missing_prompt", "give a text (an empty one is allowed)"),
    (
        {"prompt": "x", "task": "img2img", "image": None},
        "missing_image",
        "img2img needs `image`, and the row has",
    ),
    ({"prompt": "x", "task": "img2img"}, "missing_image", "name one with input.columns: {image: ...}"),
    (
        {"prompt": "x", "task": "inpaint", "image": IMAGE, "mask_image": None},
        "missing_mask_image",
        "the task inpaint needs `mask_image`",
    ),
    (
        {"prompt": "x", "task": "fill", "mask_image": None},
        "missing_mask_image",
        "step 2 (inpaint) needs `mask_image`, and the row has none",
    ),
    (
        {"prompt": "x", "task": "refine", "image": IMAGE, "denoising_start": 0.8, "denoising_end": 0.8},
        "invalid_parameter",
        "denoising_start is 0.8; it must be below denoising_end, 0.8",
    ),
    (
        {"prompt": "x", "task": "refine", "image": IMAGE, "denoising_start": 1.0},
        "invalid_parameter",
        "denoising_start is 1.0; it must be a number from 0.001 to 0.999",
    ),
    (
        {"prompt": "x", "task": "txt2img"},
        "unknown_task",
        "`txt2img` is not a route (did you mean `text2img`?); routes are text2img, img2img, inpaint, fill",
    ),
    (
        {"prompt": "x", "model": "sdx"},
        "unknown_model",
        "`sdx` is not a model (did you mean `sd`?); models are sd, xl",
    ),
    (
        {"prompt": "x", "task": "text2img", "model": "fill"},
        "unsupported_task",
        "model `fill` (sd-inpaint) does inpaint, not text2img; models here that can: sd, xl",
    ),
    (
        {"prompt": "x", "seed": -1},
        "invalid_parameter",
        f"seed is -1; it must be a whole number from 0 to {MAX_SEED}",
    ),
    ({"prompt": "x", "seed": MAX_SEED + 1}, "invalid_parameter", f"seed is {MAX_SEED + 1};"),
    (
        {"prompt": "x", "num_images_per_prompt": 0},
        "invalid_parameter",
        "num_images_per_prompt is 0; it must be a whole number from 1 to 64",
    ),
    ({"prompt": "x", "num_images_per_prompt": 65}, "invalid_parameter", "num_images_per_prompt is 65;"),
    (
        {"prompt": "x", "num_inference_steps": 1001},
        "invalid_parameter",
        "num_inference_steps is 1001; it must be a whole number from 1 to 1000",
    ),
    (
        {"prompt": "x", "guidance_scale": -0.5},
        "invalid_parameter",
        "guidance_scale is -0.5; it must be a number from 0 to 100",
    ),
    ({"prompt": "x", "guidance_scale": float("nan")}, "invalid_parameter", "guidance_scale is nan;"),
    ({"prompt": "x", "guidance_scale": float("inf")}, "invalid_parameter", "guidance_scale is inf;"),
    ({"prompt": "x", "eta": 1.5}, "invalid_parameter", "eta is 1.5; it must be a number from 0 to 1"),
    ({"prompt": "x", "clip_skip": 0}, "invalid_parameter", "clip_skip is 0;"),
    ({"prompt": "x", "height": 516}, "invalid_size", "height is 516, not a multiple of 8; 512 would do"),
    (
        {"prompt": "x", "task": "poster", "width": 100},
        "invalid_size",
        "width is 100, not a multiple of 8; 96 would",
    ),
    (
        {"prompt": "x", "task": "doubled", "height": 64, "width": 96},
        "invalid_size",
        "width is 96, not a multiple of 64, which step 2 (latent_upscale) requires; 128 would do",
    ),
    (
        {"prompt": "x", "height": 4},
        "invalid_parameter",
        "height is 4; it must be a whole number from 8 to 8192",
    ),
    (
        {"prompt": "x", "height": 4096, "width": 2048},
        "invalid_size",
        "height 4096, width 2048: that is more than the 4,194,304 pixels of input.max_pixels",
    ),
    (
        {"prompt": "x", "height": 1024, "width": 1024, "task": "larger"},
        "invalid_size",
        "step 3 (img2img) works on height 4096, width 4096: that is more than",
    ),
    (
        {"prompt": "x", "task": "inpaint", **MASKED, "height": 4096, "width": 2048},
        "invalid_size",
        "height 4096, width 2048: that is more than the 4,194,304 pixels of input.max_pixels",
    ),
    (
        {"prompt": "x", "task": "inpaint", **MASKED, "height": 60},
        "invalid_size",
        "height is 60, not a multiple",
    ),
    (
        {"prompt": "x", "task": "squared", "mask_image": IMAGE, "height": 64, "width": 72},
        "invalid_size",
        "width is 72, not a multiple of 64, which step 3 (latent_upscale) requires; 64 would do",
    ),
    (
        {"prompt": "x", "task": "resized", **MASKED, "height": 1032},
        "invalid_size",
        "height 1032, width 4096: that is more than",
    ),
    ({"prompt": "x", "height": 2**60 + 1}, "invalid_parameter", f"height is {2**60 + 1};"),
    (
        {"prompt": "x", "task": "img2img", "image": IMAGE, "strength": 0.05},
        "invalid_parameter",
        "strength 0.05 of 10 steps runs no step at all; raise strength or num_inference_steps",
    ),
    (
        {"prompt": "x", "task": "img2img", "image": IMAGE, "num_inference_steps": 1},
        "invalid_parameter",
        "strength 0.8 of 1 step runs no step at all",
    ),
    (
        {"prompt": "x", "task": "img2img", "image": IMAGE, "strength": 1.01},
        "invalid_parameter",
        "strength is 1.01;",
    ),
    (
        {"prompt": "x", "scheduler": "EulerDiscretes"},
        "invalid_scheduler",
        "`EulerDiscretes` is not a scheduler for Stable Diffusion (did you mean `EulerDiscreteScheduler`?);",
    ),
]


@pytest.mark.parametrize("row", GOOD)
def test_a_row_that_keeps_the_rules_passes(row: Values) -> None:
    """Bounds include their ends, nulls and empty names mean the default."""
    assert problem_of(row) is None


@pytest.mark.parametrize(("row", "code", "says"), BAD)
def test_a_row_that_breaks_a_rule_is_told_what_and_how_to_mend_it(row: Values, code: str, says: str) -> None:
    """The message has the row's value and the way out."""
    problem = problem_of(row)

    assert problem is not None
    assert problem[0] == code
    assert says in problem[1]


@pytest.mark.parametrize(
    ("image_format", "width", "refused"),
    [
        ("webp", 4088, False),
        ("webp", 4096, True),
        ("jpeg", 8192, False),
        ("png", 8192, False),
    ],
)
def test_a_result_that_its_file_cannot_hold_is_found_before_it_is_made(
    image_format: str, width: int, refused: bool
) -> None:
    """The result of the route's last step is four times as large as that of its first."""
    spec = SPEC.model_copy(update={"output": SPEC.output.model_copy(update={"format": image_format})})
    with input_file([{"prompt": "x", "task": "large", "height": 64, "width": width}]) as opened:
        (batch,) = opened.read_rows(0)

    problems = check_batch(batch, Router(spec, MODELS), MODELS, JUDGE).problems

    assert [str(problem) for problem in problems.values()] == [
        f"invalid_size: width of the last step's result is {4 * width}: a webp file has at most "
        "16,383 pixels a side; use output.format: png"
    ] * refused


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (20.0, None),
        (None, None),
        (20.5, "num_inference_steps is 20.5; it must be a whole"),
        (float("nan"), "is nan"),
    ],
)
def test_a_whole_number_may_come_as_a_float(value: float | None, says: str | None) -> None:
    """pandas makes floats of whole numbers with nulls; anything between two whole numbers is refused."""
    types = TYPES | {"num_inference_steps": pa.float64()}

    problem = problem_of({"prompt": "x", "num_inference_steps": value}, types)

    assert (problem is None) == (says is None)
    assert problem is None or says is None or says in problem[1]


@pytest.mark.parametrize(
    ("arrow_type", "seed", "fits"),
    [
        (pa.uint64(), 2**64 - 1, False),
        (pa.uint64(), MAX_SEED, True),
        (pa.float64(), 2.0**63, False),
        (pa.float64(), float(MAX_SEED), True),
        (pa.float64(), float("inf"), False),
        (pa.float64(), float("nan"), False),
        (pa.float64(), 1e300, False),
        (pa.int64(), -(2**63), False),
    ],
)
def test_a_seed_that_does_not_fit_is_one_rows_problem(
    arrow_type: pa.DataType, seed: float, fits: bool
) -> None:
    """Whatever the column's type holds, the row gets a seed that 64 bits can record."""
    row = built({"row_id": "r", "prompt": "x", "seed": seed}, TYPES | {"seed": arrow_type})

    assert (row.problem is None) == fits
    assert 0 <= row.seed <= MAX_SEED
    assert not fits or row.seed == int(seed)


def test_the_greatest_seed_leaves_room_for_a_rows_images() -> None:
    """Image j uses seed + j, and the last one still fits a signed 64-bit number."""
    assert MAX_SEED + MAX_IMAGES_PER_ROW < 2**63
    assert int(float(MAX_SEED)) == MAX_SEED


def test_a_pair_is_two_whole_numbers_within_bounds() -> None:
    """Each row's own pair is looked at, whatever stands before it; a null is none."""
    pairs = [None, [0, 65504], [1], [8, 9], [1, 2, 3], [None, 5], [5, -1], [65505, 5], [], None, [7, 7]]
    rows = [{"prompt": "x", "task": "poster", "original_size": pair} for pair in pairs]

    with input_file(rows, TYPES | {"original_size": pa.list_(pa.int64())}) as opened:
        problems = problems_in(list(opened.read_rows(0)))

    assert {row: says.partition(";")[0] for row, (_, says) in problems.items()} == {
        row: f"original_size is {pairs[row]}" for row in (2, 4, 5, 6, 7, 8)
    }


def test_a_pair_is_height_and_width_in_this_order() -> None:
    """As diffusers takes it."""
    types = TYPES | {"original_size": pa.list_(pa.int64())}

    row = built({"prompt": "x", "task": "poster", "original_size": [640, 384]}, types)

    assert row.parameters["original_size"] == (640, 384)


ZERO_SNR = '{"rescale_betas_zero_snr":true,"timestep_spacing":"trailing"}'
"""Options with which DDIM must not begin at the first timestep."""


def test_each_rows_scheduler_is_judged_with_its_own_options_and_steps() -> None:
    """And with where it begins; the values that it leaves out are its route's."""
    late: Values = {
        "prompt": "x",
        "image": IMAGE,
        "scheduler": "DDIMScheduler",
        "scheduler_options": ZERO_SNR,
    }
    plain: Values = {"prompt": "x", "task": "text2img"}
    rows: list[tuple[Values, bool]] = [
        (plain, True),
        (plain | {"scheduler": "LCMScheduler", "num_inference_steps": 51}, False),
        (plain | {"scheduler": "LCMScheduler", "num_inference_steps": 50}, True),
        (plain | {"scheduler": "DDIMScheduler", "num_inference_steps": 51}, True),
        (late | {"task": "img2img", "strength": 1.0}, False),
        (late | {"task": "img2img", "strength": 0.9}, True),
        (late | {"task": "img2img"}, True),
        (late | {"task": "text2img"}, False),
        (late | {"task": "refine", "strength": 1.0, "denoising_start": 0.5}, True),
        (late | {"task": "refine", "strength": 1.0}, False),
        (late | {"task": "text2img", "scheduler": None, "scheduler_options": None}, True),
        ({"prompt": "x", "task": "latent_upscale", "image": IMAGE, "scheduler": "DDIMScheduler"}, False),
        (
            {"prompt": "x", "task": "latent_upscale", "image": IMAGE, "scheduler": "HeunDiscreteScheduler"},
            True,
        ),
        (plain | {"scheduler": "PNDMScheduler", "num_inference_steps": 1}, True),
        (plain | {"scheduler": "PNDMScheduler", "scheduler_options": '{"skip_prk_steps":false}'}, True),
        (plain | {"scheduler_options": '{"skip_prk_steps":false}', "num_inference_steps": 3}, False),
    ]

    with input_file([row for row, _ in rows], TYPES | {"scheduler_options": pa.string()}) as opened:
        (batch,) = opened.read_rows(0)
        problems = problems_in([batch])

    assert [row for row, (_, fits) in enumerate(rows) if not fits] == sorted(problems)
    assert {code for code, _ in problems.values()} == {"invalid_scheduler"}


def test_only_the_first_broken_rule_is_told() -> None:
    """A row has one error; a missing prompt comes before a wrong number."""
    problem = problem_of({"prompt": None, "guidance_scale": -1.0, "height": 3})

    assert problem is not None
    assert problem[0] == "missing_prompt"


def test_a_rows_value_beats_its_route_and_the_route_beats_what_is_published() -> None:
    """Each parameter is settled by the row, the route, diffusers or the checkpoint, in this order."""
    row = built({"prompt": "x", "task": "poster", "height": 640, "guidance_scale": None, "scheduler": None})

    assert row.route.model == "xl"
    assert row.parameters["height"] == 640
    assert row.parameters["width"] == 512
    assert row.parameters["guidance_scale"] == 5.0
    assert row.parameters["scheduler"] == "PNDMScheduler"


def test_a_row_that_goes_nowhere_has_no_model() -> None:
    """Such rows are a shard of their own, so that no checkpoint is loaded for them."""
    row = built({"prompt": "x", "task": "variation"})

    assert row.route.model == NO_MODEL
    assert isinstance(row.problem, RowError)


def test_a_chain_is_resolved_as_a_whole() -> None:
    """It has all its steps, or its rows fail with what is wrong with a later step."""
    chain = Router(SPEC, MODELS).resolve("fill", None)
    broken = Router(SPEC, {**MODELS, "fill": card("upscale", 512)}).resolve("fill", None)

    assert isinstance(chain, ResolvedRoute)
    assert [step.name for step in chain.steps] == ["fill", "inpaint"]
    assert isinstance(broken, Unroutable)
    assert (broken.name, broken.model, broken.problem.code) == ("fill", NO_MODEL, "unsupported_task")


def texts(*known: str) -> st.SearchStrategy[str | None]:
    return st.none() | st.sampled_from([*known, "", "nonsense"])


def whole_numbers(*edges: int) -> st.SearchStrategy[int | None]:
    return st.none() | st.sampled_from(edges) | st.integers(-(2**63), 2**63 - 1)


def numbers(*edges: float) -> st.SearchStrategy[float | None]:
    return st.none() | st.sampled_from(edges) | st.floats()


ROWS = st.fixed_dictionaries(
    {"prompt": st.none() | st.sampled_from(["", "a fox"])},
    optional={
        "task": texts("text2img", "img2img", "inpaint", "poster"),
        "model": texts("sd", "xl", "fill"),
        "image": st.none() | st.just(IMAGE),
        "mask_image": st.none() | st.just(IMAGE),
        "seed": whole_numbers(0, MAX_SEED, MAX_SEED + 1),
        "num_images_per_prompt": whole_numbers(0, 1, 64, 65),
        "num_inference_steps": whole_numbers(0, 1, 2, 50, 1000),
        "guidance_scale": numbers(0.0, 7.5, 100.0),
        "strength": numbers(0.0, 0.02, 0.5, 1.0),
        "height": whole_numbers(0, 8, 12, 512),
        "width": whole_numbers(8, 513, 8192),
        "scheduler": texts("DDIMScheduler", "EulerDiscreteScheduler"),
    },
)


@given(rows=st.lists(ROWS, min_size=1, max_size=8))
@settings(deadline=None)
def test_rows_are_judged_alike_in_any_company(rows: list[Values]) -> None:
    """A row's problem is the same in the plan's pass over a file and alone, as a worker may meet it."""
    with input_file(rows) as opened:
        planned = problems_in(list(opened.read_for_checks()))
        together = problems_in(list(opened.read_rows(0)))
        alone = problems_in(list(opened.read_rows(0, batch_size=1)))

    assert planned == together == alone


@given(rows=st.lists(ROWS, min_size=1, max_size=8))
@settings(deadline=None)
def test_a_row_without_a_problem_has_usable_values(rows: list[Values]) -> None:
    """What passes is complete: a system, a seed, a count, and every parameter within its bounds."""
    router = Router(SPEC, MODELS)
    with input_file(rows) as opened:
        for batch in opened.read_rows(0):
            checked = check_batch(batch, router, MODELS, JUDGE)
            wanted = list(range(batch.num_rows))
            for row in build_rows(checked, wanted, file_name="f", first_index=0, job_seed=0, spool=Spool()):
                assert 0 <= row.seed <= MAX_SEED
                if row.problem is None:
                    assert row.texts["prompt"] is not None
                    assert isinstance(row.route, ResolvedRoute)
                    assert set(row.route.system.images) <= set(row.images)
                    assert 1 <= row.num_images <= MAX_IMAGES_PER_ROW
                    assert row.parameters["scheduler"] in SCHEDULERS
                    assert 0 <= float(row.parameters["guidance_scale"] or 0) <= 100


def test_each_of_many_wrong_names_is_told_to_its_own_row() -> None:
    """A batch may hold as many different wrong schedulers as rows."""
    rows = [{"prompt": "x", "scheduler": f"Sampler{i}"} for i in range(100)]

    with input_file(rows) as opened:
        problems = problems_in(list(opened.read_rows(0, batch_size=100)))

    assert all(f"`Sampler{i}` is not a scheduler" in problems[i][1] for i in range(100))
