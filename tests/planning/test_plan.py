"""Facts about the plan: what it reads, what it counts, and how it cuts the work into shards."""

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from actors.images.encoding import TYPICAL_BYTES_PER_PIXEL, TYPICAL_DEPTH_BYTES_PER_PIXEL
from actors.inputs.input_file import InputFile
from actors.rows.routing import Router
from actors.storage.objects import StoredObject
from actors.storage.output import open_output
from actors.storage.stores import Stores, open_storage
from jobs.output import resumption
from jobs.output.job_record import claim
from jobs.planning.plan import Plan, ShardFinder, largest_part, make_plan
from jobs.planning.plan_text import LARGE_PART_BYTES, MAX_ROUTE_LINES, print_plan, refuse_hopeless
from jobs.planning.row_scan import Findings, RouteCount
from jobs.survey.input_paths import find_files, input_paths
from jobs.survey.survey import make_survey
from schemas.columns.input_columns import map_columns
from schemas.columns.input_schemas import InputSchemas
from schemas.columns.output_columns import IMAGE_TYPE
from schemas.errors import SpecError
from schemas.job import NO_MODEL, Job, PlannedFile
from schemas.output_layout import shard_name
from schemas.spec.job_spec import InputSpec, JobSpec
from tests.support.checkpoints import paper_checkpoint
from tests.support.running import ROOT
from tests.support.s3.s3_server import S3Server

Columns = Mapping[str, list[Any] | pa.Array]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        "sd": paper_checkpoint(folder / "sd"),
        "xl": paper_checkpoint(folder / "xl", pipeline="StableDiffusionXLPipeline", sample_size=128),
        "fill": paper_checkpoint(folder / "fill", pipeline="StableDiffusionInpaintPipeline", channels=9),
    }


@pytest.fixture
def spec(tmp_path: Path, checkpoints: dict[str, Path]) -> JobSpec:
    """Three models, four routes, input from tmp_path/in."""
    (tmp_path / "in").mkdir()
    return JobSpec.model_validate(
        {
            "version": 1,
            "name": "plan",
            "input": {"path": str(tmp_path / "in")},
            "models": {name: {"checkpoint": str(folder)} for name, folder in checkpoints.items()},
            "routes": {
                "text2img": {"model": "sd"},
                "img2img": {"model": "sd"},
                "inpaint": {"model": "fill"},
                "poster": {"task": "text2img", "model": "xl", "height": 768, "width": 512},
            },
            "default_route": "text2img",
            "output": {"path": str(tmp_path / "out")},
            "batching": {"shard_rows": 2},
            "errors": {"max_rate": 1.0},
        }
    )


def change(spec: JobSpec, **sections: object) -> JobSpec:
    return JobSpec.model_validate({**spec.model_dump(), **sections})


def write(path: Path, columns: Columns, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(columns)), path, **options)
    return path


def write_input(spec: JobSpec, name: str = "a.parquet", **columns: list[Any] | pa.Array) -> Path:
    return write(Path(str(spec.input.path)) / name, columns)


def plan_of(spec: JobSpec) -> tuple[Plan, Findings]:
    return make_plan(make_survey(spec))


def refusal(spec: JobSpec) -> str:
    with pytest.raises(SpecError) as refused:
        plan_of(spec)
    return str(refused.value)


def files_of(spec: JobSpec) -> list[StoredObject]:
    """Return the input files that a spec finds."""
    stores = Stores()
    return find_files(input_paths(spec.input, stores), stores)[0]


def names_of(spec: JobSpec) -> list[str]:
    """Return the input files that a spec finds, below its own folder `in`."""
    root = f"{Path(spec.output.path).parent}/in/"
    return [stored.uri.removeprefix(root) for stored in files_of(spec)]


def test_rows_are_counted_by_route_model_and_size(spec: JobSpec) -> None:
    """Rows, images and pixels of each way; checkpoint, route and row decide the size."""
    write_input(
        spec,
        prompt=["p"] * 6,
        task=[None, "text2img", "text2img", "poster", "img2img", "text2img"],
        model=[None, None, "xl", None, None, None],
        image=pa.array([None] * 4 + [{"bytes": b"x", "path": None}] + [None], IMAGE_TYPE),
        height=[None, None, None, None, None, 256],
        num_images_per_prompt=[None, 3, None, 2, None, None],
    )

    _, findings = plan_of(spec)

    assert not findings.num_bad
    assert tuple(replace(count, work=()) for count in findings.counts) == (
        RouteCount(route="img2img", model="sd", size="input", rows=1, images=1, pixels=512 * 512),
        RouteCount(route="poster", model="xl", size="512x768", rows=1, images=2, pixels=2 * 512 * 768),
        RouteCount(route="text2img", model="sd", size="512x256", rows=1, images=1, pixels=512 * 256),
        RouteCount(route="text2img", model="sd", size="512x512", rows=2, images=4, pixels=4 * 512 * 512),
        RouteCount(route="text2img", model="xl", size="1024x1024", rows=1, images=1, pixels=1024 * 1024),
    )


def test_bad_rows_are_counted_and_the_first_of_them_named(spec: JobSpec) -> None:
    """Each kind of mistake has its count, and at most twenty examples with file, number and id."""
    bad = [None] * 30 + ["p"] * 10
    write_input(spec, "a.parquet", prompt=bad, row_id=[f"a{i}" for i in range(40)], seed=[0] * 39 + [-1])
    write_input(spec, "b.parquet", prompt=bad, row_id=[f"b{i}" for i in range(40)], seed=[0] * 39 + [-1])

    plan, findings = plan_of(spec)

    assert findings.num_bad == {"invalid_parameter": 2, "missing_prompt": 60}
    seeds = [row for row in findings.bad_rows if row.problem.code == "invalid_parameter"]
    prompts = [row for row in findings.bad_rows if row.problem.code == "missing_prompt"]
    assert [(Path(row.uri).name, row.row, row.row_id) for row in seeds] == [
        ("a.parquet", 39, "a39"),
        ("b.parquet", 39, "b39"),
    ]
    assert [row.row_id for row in prompts] == [f"a{i}" for i in range(20)]
    assert plan.num_rows == 80


def test_bad_rows_are_in_the_shards_too(spec: JobSpec) -> None:
    """Every row will have an outcome: those of no model are a shard of their own."""
    write_input(spec, prompt=["p", None, "p", "p"], task=["text2img", "text2img", "nowhere", "inpaint"])

    plan, _ = plan_of(spec)

    assert plan.files[0].rows_by_model == {"": 1, "fill": 1, "sd": 2}
    assert [(shard.model, shard.start, shard.stop) for shard in plan.shards()] == [
        ("sd", 0, 2),
        ("fill", 0, 1),
        (NO_MODEL, 0, 1),
    ]


FILES = st.lists(
    st.dictionaries(st.sampled_from(["sd", "xl", "fill", NO_MODEL]), st.integers(0, 40)),
    min_size=1,
    max_size=5,
)


@given(files=FILES, shard_rows=st.integers(1, 17))
@settings(deadline=None)
def test_every_row_of_every_file_is_in_exactly_one_shard(
    files: list[dict[str, int]], shard_rows: int
) -> None:
    """Shards are a formula over the plan's lines: numbered without gaps, never across files or models."""
    plan = plan_from(files, shard_rows)

    shards = list(plan.shards())
    covered = [(shard.uri, shard.model, row) for shard in shards for row in range(shard.start, shard.stop)]

    assert sorted(covered) == sorted(
        (f"f{number}", model, row)
        for number, rows_by_model in enumerate(files)
        for model, rows in rows_by_model.items()
        for row in range(rows)
    )
    assert [shard.index for shard in shards] == list(range(plan.num_shards))
    assert [shard.name for shard in shards] == [shard_name(i, len(shards)) for i in range(plan.num_shards)]
    assert all(1 <= shard.num_rows <= shard_rows for shard in shards)
    assert [shard.name for shard in shards] == sorted(shard.name for shard in shards)
    for model in ("sd", "xl", "fill", NO_MODEL):
        assert plan.num_shards_of(model) == sum(shard.model == model for shard in shards)
    assert [ShardFinder(plan).shard_at(index) for index in range(len(shards))] == shards
    with pytest.raises(IndexError):
        ShardFinder(plan).shard_at(len(shards))


def test_a_job_goes_on_with_its_shards_if_the_spec_names_its_models_in_another_order(spec: JobSpec) -> None:
    """Such a spec is the same job: a part that is there must not stand for another model's rows."""
    write_input(spec, prompt=["p"] * 5, task=["inpaint", "poster", "text2img", "poster", "poster"])
    plan, findings = plan_of(spec)
    output = open_output(spec.output.path)
    record = claim(output, plan, findings)
    reordered = change(spec, models=dict(reversed(spec.models.items())))

    resumed = resumption.plan_of(record, make_survey(reordered), output.path)

    assert [*resumed.shards()] == [*plan.shards()]
    assert [shard.model for shard in resumed.shards()] == ["sd", "xl", "xl", "fill"]


def plan_from(files: list[dict[str, int]], shard_rows: int) -> Plan:
    spec = JobSpec.model_validate(
        {
            "version": 1,
            "name": "formula",
            "input": {"path": "in"},
            "models": {name: {"checkpoint": "a/b"} for name in ("sd", "xl", "fill")},
            "routes": {"text2img": {"model": "sd"}},
            "output": {"path": "out"},
            "batching": {"shard_rows": shard_rows},
        }
    )
    columns = map_columns(InputSchemas({"x": pa.schema([("prompt", pa.string())])}), spec.input)
    planned = tuple(
        PlannedFile(uri=f"f{number}", size_bytes=1, etag="e", num_rows=sum(rows.values()), rows_by_model=rows)
        for number, rows in enumerate(files)
    )
    cards: dict[str, Any] = dict.fromkeys(spec.models)
    return Plan(job=Job(spec=spec, models=cards, columns=columns, schema=b""), files=planned)


class CountedFile(io.FileIO):
    """A file that knows how many bytes were read from it."""

    num_bytes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(-1 if size is None else size)
        self.num_bytes += len(data or b"")
        return data or b""

    def readinto(self, buffer: Any, /) -> int:
        count = super().readinto(buffer) or 0
        self.num_bytes += count
        return count


@pytest.mark.parametrize("one_is_missing", [False, True])
def test_images_are_never_read_for_a_plan(tmp_path: Path, one_is_missing: bool) -> None:
    """Whether a row has its image is seen without the image: of 40 MB, 100 kB are read."""
    noise = np.random.default_rng(0).bytes(200_000)
    pictures = [{"bytes": noise, "path": None} for _ in range(100)]
    if one_is_missing:
        pictures[7] = None  # type: ignore[call-overload]
    columns = {
        "prompt": ["p"] * 100,
        "task": ["img2img"] * 100,
        "image": pa.array(pictures, IMAGE_TYPE),
        "mask_image": [noise] * 100,
    }
    path = write(tmp_path / "a.parquet", columns, row_group_size=50, use_dictionary=False, compression="none")
    source = CountedFile(path)
    opened = InputFile(source, map_columns(InputSchemas({"x": pq.read_schema(path)}), InputSpec(path="x")))

    with opened:
        present = [list(batch.present["image"]) for batch in opened.read_for_checks()]

    assert sum(map(sum, present)) == 100 - one_is_missing
    assert path.stat().st_size > 39_000_000
    assert source.num_bytes < 100_000


@pytest.mark.parametrize("others", [{"bytes": b"x", "path": None}, {"bytes": None, "path": "x"}, None])
@pytest.mark.parametrize("whole", [{"bytes": b"x", "path": "x"}, {"bytes": b"x", "path": None}])
def test_an_image_of_neither_bytes_nor_a_path_is_missing(tmp_path: Path, whole: Any, others: Any) -> None:
    """As some writers have it: the plan knows it from one that is there, and from a null, in any company."""
    pictures = [whole, {"bytes": None, "path": None}, others, whole]
    path = write(tmp_path / "a.parquet", {"prompt": ["p"] * 4, "image": pa.array(pictures, IMAGE_TYPE)})

    with InputFile(
        io.FileIO(path), map_columns(InputSchemas({"x": pq.read_schema(path)}), InputSpec(path="x"))
    ) as opened:
        (checked,) = opened.read_for_checks()
        (made,) = opened.read_rows(0)

    for batch in (checked, made):
        assert list(batch.present["image"]) == [True, False, others is not None, True]


def test_prompts_are_not_read_where_the_footer_says_that_none_is_missing(tmp_path: Path) -> None:
    """A column of long texts costs a plan nothing."""
    texts = [np.random.default_rng(i).bytes(5_000).hex() for i in range(100)]
    path = write(
        tmp_path / "a.parquet", {"prompt": texts, "negative_prompt": texts, "seed": list(range(100))}
    )
    source = CountedFile(path)

    with InputFile(
        source, map_columns(InputSchemas({"x": pq.read_schema(path)}), InputSpec(path="x"))
    ) as opened:
        (batch,) = opened.read_for_checks()

    assert set(batch.fields) == {"seed"}
    assert source.num_bytes < path.stat().st_size / 10


def test_a_folder_is_read_at_any_depth_without_hidden_names(spec: JobSpec) -> None:
    """Names that begin with _ or . are other programs' bookkeeping, and other files are no input."""
    for name in (
        "b.parquet",
        "a.parquet",
        "day=1/c.parquet",
        "_tmp/x.parquet",
        ".y.parquet",
        "day=1/_z.parquet",
    ):
        write_input(spec, name, prompt=["p"])
    (Path(str(spec.input.path)) / "README.md").write_text("no rows")

    assert names_of(spec) == ["a.parquet", "b.parquet", "day=1/c.parquet"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.parquet", ["a.parquet", "b[1].parquet"]),
        ("*/*.parquet", ["day=1/c.parquet", "day=2/c.parquet"]),
        ("day=?/*", ["day=1/c.parquet", "day=2/c.parquet"]),
        ("day=[2-9]/*.parquet", ["day=2/c.parquet"]),
        ("**/c.parquet", ["day=1/c.parquet", "day=2/c.parquet", "day=2/hour=3/c.parquet"]),
        (
            "**/*.parquet",
            ["a.parquet", "b[1].parquet", "day=1/c.parquet", "day=2/c.parquet", "day=2/hour=3/c.parquet"],
        ),
        ("day=2/**", ["day=2/c.parquet", "day=2/hour=3/c.parquet"]),
        ("_tmp/*.parquet", ["_tmp/x.parquet"]),
        ("b[1].parquet", ["b[1].parquet"]),
    ],
)
def test_a_pattern_is_read_as_in_a_shell(spec: JobSpec, pattern: str, found: list[str]) -> None:
    """`*` stays within a folder, `**` crosses folders, and a file's own name needs no pattern."""
    names = ("a", "b[1]", "day=1/c", "day=2/c", "day=2/hour=3/c", "_tmp/x", "day=1/_z")
    for name in names:
        write_input(spec, f"{name}.parquet", prompt=["p"])

    assert names_of(change(spec, input={"path": f"{spec.input.path}/{pattern}"})) == found


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("prompts [final]", ["prompts [final]/a.parquet", "prompts [final]/day=1/b.parquet"]),
        ("prompts [final]/a.parquet", ["prompts [final]/a.parquet"]),
        ("prompts [final]/day=1", ["prompts [final]/day=1/b.parquet"]),
        ("prompts [final]/*.parquet", ["prompts [final]/a.parquet"]),
        ("prompts [final]/day=?/*.parquet", ["prompts [final]/day=1/b.parquet"]),
        ("prompts ?", ["prompts ?/c.parquet"]),
        ("prompts ?/c.parquet", ["prompts ?/c.parquet"]),
        ("prompts [?]/*", ["prompts ?/c.parquet"]),
        ("prompts [a-f]/*", ["prompts f/d.parquet"]),
        ("*", ["*/e.parquet"]),
        ("[*]/*", ["*/e.parquet"]),
        ("**/b.parquet", ["prompts [final]/day=1/b.parquet"]),
    ],
)
@pytest.mark.parametrize("place", ["local", "s3"])
def test_what_exists_wins_over_what_matches(
    s3_env: S3Server, spec: JobSpec, s3_folder: str, place: str, path: str, found: list[str]
) -> None:
    """Names may have a pattern's signs, on disk and in a bucket, in each part of a path."""
    root = str(spec.input.path) if place == "local" else s3_folder
    storage = open_storage(root)
    names = ("prompts [final]/a", "prompts [final]/day=1/b", "prompts ?/c", "prompts f/d", "*/e")
    for name in names:
        storage.create(f"{root}/{name}.parquet", b"rows", {})

    looking = change(spec, input={"path": f"{root}/{path}"})

    assert [stored.uri.removeprefix(f"{root}/") for stored in files_of(looking)] == found


def test_a_pattern_that_finds_nothing_says_how_its_signs_are_escaped(spec: JobSpec) -> None:
    """Whoever means a name need not know that it is also a pattern."""
    write_input(spec, prompt=["p"])

    path = f"{spec.input.path}/what?[1]"

    assert refusal(change(spec, input={"path": path})) == (
        f"input.path: there is no file with rows at {path} (a file, a folder or a pattern). "
        "If this is the name itself, write [?] for `?` and [[] for `[`"
    )


def test_a_list_of_paths_names_each_file_once(spec: JobSpec) -> None:
    """Files, folders and patterns may overlap; the order is that of the names."""
    for name in ("a.parquet", "b.parquet", "more/c.parquet"):
        write_input(spec, name, prompt=["p"])
    folder = spec.input.path
    paths = [f"{folder}/more", f"{folder}/b.parquet", f"file://{folder}/b.parquet", f"{folder}/*.parquet"]

    assert names_of(change(spec, input={"path": paths})) == ["a.parquet", "b.parquet", "more/c.parquet"]


def test_an_input_that_is_not_there_is_refused(spec: JobSpec) -> None:
    """Of several paths, the one that finds nothing is named with its full place."""
    write_input(spec, prompt=["p"])
    path = str(spec.input.path)

    for missing in (
        f"{path}/none.parquet",
        f"{path}/none",
        f"{path}/*.csv",
        str(Path(path).parent / "no" / "*"),
    ):
        assert refusal(change(spec, input={"path": [path, missing]})) == (
            f"input.path: there is no file with rows at {missing} (a file, a folder or a pattern)"
        )


def test_input_without_rows_is_refused(spec: JobSpec) -> None:
    """An empty file beside a full one is fine; nothing but empty files is not."""
    write_input(spec, "empty.parquet", prompt=pa.array([], pa.string()))

    assert refusal(spec) == f"input.path: no rows in {spec.input.path}"

    write_input(spec, "full.parquet", prompt=["p"])
    plan, _ = plan_of(spec)
    assert (plan.num_rows, plan.num_shards) == (1, 1)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"row_id,prompt\n1,a fox\n" * 10])
def test_a_file_that_is_not_parquet_is_named(spec: JobSpec, content: bytes) -> None:
    """An empty, a cut and a foreign file are all refused before any row is read."""
    write_input(spec, "a.parquet", prompt=["p"])
    (Path(str(spec.input.path)) / "b.parquet").write_bytes(content)

    assert "in/b.parquet is not a readable Parquet file" in refusal(spec)


def test_damage_inside_a_file_is_found(spec: JobSpec) -> None:
    """A file whose footer is whole but whose ids are not is refused by the plan, not by a worker."""
    path = write_input(spec, prompt=["p"] * 5000, row_id=list(range(5000)))
    column = pq.read_metadata(path).row_group(0).column(1)
    data = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + column.total_compressed_size] = b"\0" * column.total_compressed_size
    path.write_bytes(data)

    assert f"input.path: {path} cannot be read to its end" in refusal(spec)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"prompt": ["p"]}, "b.parquet has no column `seed`, which"),
        ({"prompt": ["p"], "seed": ["1"], "note": ["x"]}, "column `seed` is string in"),
        ({"prompt": ["p"], "seed": [1], "note": [1]}, "column `note` is int64 in"),
        ({"prompt": ["p"], "seed": [1]}, "b.parquet has no column `note`, which"),
    ],
)
def test_files_must_agree_on_the_columns_that_are_read(spec: JobSpec, other: Columns, says: str) -> None:
    """A column that is missing or of another type in one file is named with both files, kept ones too."""
    first = write_input(spec, "a.parquet", prompt=["p"], seed=[1], note=["x"])
    write(first.with_name("b.parquet"), other)
    write(first.with_name("c.parquet"), {"prompt": ["p"], "seed": [1], "note": ["y"]})

    said = refusal(change(spec, input={"path": spec.input.path, "keep": ["note"]}))

    assert says in said
    assert "b.parquet" in said


def test_a_column_that_a_later_file_has_twice_is_named(spec: JobSpec) -> None:
    """Nobody could tell which one is meant."""
    first = write_input(spec, "a.parquet", prompt=["p"], seed=[1])
    twice = pa.Table.from_arrays([pa.array(["p"]), pa.array([1]), pa.array([2])], ["prompt", "seed", "seed"])
    pq.write_table(twice, first.with_name("b.parquet"))

    assert refusal(spec).endswith("b.parquet has 2 columns of the name `seed`; rename all but one")


def test_files_may_differ_in_columns_that_are_not_read(spec: JobSpec) -> None:
    """Only what generating needs must agree."""
    write_input(spec, "a.parquet", prompt=["p"], note=["x"])
    write_input(spec, "b.parquet", prompt=["p"], note=[1], more=[2])

    assert plan_of(spec)[0].num_rows == 2


def test_rows_need_a_prompt_column_and_whole_ids(spec: JobSpec) -> None:
    """Without a prompt column nothing is made; an id column has an id for every row."""
    path = write_input(spec, text_en=["p"], seed=[1])
    assert refusal(spec) == (
        "the input has no column `prompt`; it has text_en, seed. "
        "Name the one to use with input.columns: {prompt: ...}"
    )

    write_input(spec, prompt=["p", "q", "r"], id=["1", None, None])
    assert f"column `id` has 2 nulls in {path} (row 1 is the first); every row needs its id" in refusal(spec)


def test_the_weights_of_a_checker_count_only_where_it_is_used(spec: JobSpec, tmp_path: Path) -> None:
    """A checkpoint may have been copied without them."""
    write_input(spec, prompt=["p"])
    index = Path(spec.models["sd"].checkpoint) / "model_index.json"
    content = json.loads(index.read_text())
    content["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    bare = paper_checkpoint(tmp_path / "bare")
    (bare / "model_index.json").write_text(json.dumps(content))
    models = {**spec.model_dump()["models"], "sd": {"checkpoint": str(bare)}}

    assert "bare has no files of its safety_checker" in refusal(change(spec, models=models))
    assert plan_of(change(spec, models=models, safety={"checker": "off"}))[0].num_rows == 1


def test_rows_of_a_task_without_texts_need_no_prompt(spec: JobSpec, tmp_path: Path) -> None:
    """Variations are made of an image alone."""
    image = pa.array([{"bytes": b"x", "path": None}], IMAGE_TYPE)
    folder = paper_checkpoint(tmp_path / "vary", pipeline="StableDiffusionImageVariationPipeline")
    write_input(spec, image=image)
    routes = {"variation": {"model": "vary"}}

    _, findings = plan_of(
        change(spec, models={"vary": {"checkpoint": str(folder)}}, routes=routes, default_route="variation")
    )

    assert not findings.num_bad


def test_rows_need_a_task_column_or_a_default_route(spec: JobSpec) -> None:
    """With several routes and no word which one, the routes are listed."""
    write_input(spec, prompt=["p"])

    said = refusal(change(spec, default_route=None))

    assert said.endswith("set default_route to one of text2img, img2img, inpaint, poster")


@pytest.mark.parametrize(
    ("route", "says"),
    [
        (
            {"task": "img2img", "model": "fill"},
            "routes.r: model `fill` (sd-inpaint) does inpaint, not img2img; models here that can: sd, xl",
        ),
        (
            {"task": "text2img", "model": "sd", "height": 500},
            "routes.r.height: 500 is not a multiple of 8, the VAE factor of model `sd`",
        ),
        (
            {"task": "img2img", "model": "sd", "guidance_rescale": 0.5},
            "routes.r.guidance_rescale: StableDiffusionImg2ImgPipeline has no such parameter",
        ),
    ],
)
def test_a_route_must_fit_its_model(spec: JobSpec, route: dict[str, object], says: str) -> None:
    """What the checkpoint cannot do is refused, with the models that could."""
    write_input(spec, prompt=["p"])

    assert refusal(change(spec, routes={"r": route}, default_route="r")) == says


@pytest.mark.parametrize(
    ("path", "output"),
    [
        ("in", "in"),
        ("in", "in/sub/out"),
        ("i*/**/*.parquet", "in/out"),
        ("**", "in"),
        ("in/a [1]", "in/a [1]/out?"),
        ("in/a [1]/**", "in/a [1]/out?"),
    ],
)
def test_a_job_may_not_read_what_it_writes(spec: JobSpec, path: str, output: str) -> None:
    """Its own parts would look like a changed input, and the job could never be resumed."""
    write_input(spec, "a [1]/a.parquet", prompt=["p"])
    root = Path(spec.output.path).parent
    write(root / "other.parquet", {"prompt": ["p"]})
    paths = [f"{root}/other.parquet", f"{root}/{path}"]

    said = refusal(change(spec, input={"path": paths}, output={"path": f"{root}/{output}"}))

    assert said.startswith(f"output.path: {root}/{output} is where input.path looks for rows ({root}/{path})")


@pytest.mark.parametrize(
    ("path", "output"), [("in", "in-out"), ("in/*.parquet", "in/out"), ("in", "in/_out")]
)
def test_an_output_beside_the_input_is_fine(spec: JobSpec, path: str, output: str) -> None:
    """What the input does not look at may lie as near as it likes."""
    write_input(spec, prompt=["p"])
    root = Path(spec.output.path).parent

    plan, _ = plan_of(change(spec, input={"path": f"{root}/{path}"}, output={"path": f"{root}/{output}"}))

    assert plan.num_rows == 1


@pytest.mark.parametrize(
    ("section", "path"),
    [("input", "gs://bucket/x"), ("output", "gs://bucket/x"), ("output", "s3://key@bucket/x")],
)
def test_a_path_that_is_not_read_is_named_with_its_key(spec: JobSpec, section: str, path: str) -> None:
    """Other stores and secrets in paths are refused before anything is opened."""
    write_input(spec, prompt=["p"])

    assert refusal(change(spec, **{section: {"path": path}})).startswith(f"{section}.path: ")


@pytest.mark.parametrize("name", ["status", "depth", "depth_sha256", "step_images"])
def test_a_kept_column_may_not_hide_one_of_darkrooms(spec: JobSpec, name: str) -> None:
    """`status` is the output's own, and so are those that only other jobs write: parts are read alike."""
    write_input(spec, prompt=["p"], **{name: [1.5]})
    kept = {"path": spec.input.path, "keep": [name], "columns": {"depth_map": None}}

    assert f"`{name}` is a column that darkroom writes itself" in refusal(change(spec, input=kept))


@pytest.mark.parametrize(("bad", "rows"), [(29, 1000), (1, 3), (1, 7), (10, 10)])
def test_a_hopeless_plan_is_refused_with_a_rate_that_would_do(spec: JobSpec, bad: int, rows: int) -> None:
    """The suggested errors.max_rate lets the same job through."""
    write_input(spec, prompt=[None] * bad + ["p"] * (rows - bad))
    strict = make_survey(change(spec, errors={"max_rate": 0.01 if rows > 100 else 0.0}))
    _, findings = make_plan(strict)

    with pytest.raises(SpecError, match=f"{bad} of {rows:,} rows cannot be generated") as refused:
        refuse_hopeless(strict, findings)
    suggested = float(str(refused.value).rpartition("max_rate=")[2])
    refuse_hopeless(make_survey(change(spec, errors={"max_rate": suggested})), findings)

    assert suggested - bad / rows < 0.001


def printed(plan: Plan, findings: Findings) -> list[str]:
    """The lines that `darkroom plan` prints about this plan."""
    file = io.StringIO()
    print_plan(plan, findings, Console(file=file, width=200))
    return file.getvalue().splitlines()


def test_a_plan_names_the_bad_rows_of_each_code_and_counts_all(spec: JobSpec) -> None:
    """A row's line stands below its own code."""
    prompts = [None, "p", None, "p"]
    write_input(spec, prompt=prompts, seed=[0, 0, 0, -1], row_id=["a", "b", "c", "d"])

    lines = printed(*make_plan(make_survey(spec), max_examples=1))

    bad = [line for line in lines if "cannot be generated" in line or line.startswith("  a.parquet")]
    assert [line.partition(": ")[0] for line in bad] == [
        "1 of 4 rows cannot be generated",
        "  a.parquet row 3 (d)",
        "2 of 4 rows cannot be generated",
        "  a.parquet row 0 (a)",
    ]
    assert bad[0].endswith(": invalid_parameter")
    assert bad[2].endswith(": missing_prompt; the first 1:")


def test_a_plan_lists_its_commonest_sizes_and_adds_up_the_others(spec: JobSpec) -> None:
    """Rows and images of what is not listed are counted."""
    heights = [64 + 8 * i for i in range(MAX_ROUTE_LINES + 2)]
    common = [height for height in heights[:MAX_ROUTE_LINES] for _ in range(3)]
    rare = [heights[-2], heights[-1], heights[-1]]
    write_input(
        spec,
        prompt=["p"] * len(common + rare),
        height=rare + common,
        num_images_per_prompt=[4, 1, 1] + [1] * len(common),
    )

    lines = printed(*plan_of(spec))

    assert sum(line.startswith("│ text2img") for line in lines) == MAX_ROUTE_LINES
    (others,) = (line for line in lines if "others" in line)
    assert [word for word in others.split() if word.isdigit()] == ["2", "3", "6"]


def test_a_plan_shows_the_steps_of_a_chain_below_its_route(spec: JobSpec) -> None:
    """Each with its model and the size of its images, the last of which are the result."""
    poster = spec.model_dump()["routes"]["poster"] | {"then": ["img2img"]}
    chained = change(spec, routes=spec.model_dump()["routes"] | {"poster": poster})
    write_input(spec, prompt=["p"], task=["poster"])

    lines = printed(*plan_of(chained))

    (first,) = (number for number, line in enumerate(lines) if line.startswith("│ poster"))
    assert lines[first].strip("│").split() == ["poster", "│", "xl", "│", "512x768", "│", "1", "│", "1"]
    assert lines[first + 1].strip("│").split() == ["then", "img2img", "│", "sd", "│", "512x768", "│", "│"]


@pytest.mark.parametrize(("num_bytes", "told"), [(LARGE_PART_BYTES, False), (LARGE_PART_BYTES + 10, True)])
def test_parts_that_viewers_find_too_large_are_told_of(spec: JobSpec, num_bytes: int, told: bool) -> None:
    """The size of one part counts, and not that of the whole output."""
    write_input(spec, prompt=["p"] * 5)
    plan, _ = plan_of(spec)
    pixels = int(plan.num_shards * num_bytes / TYPICAL_BYTES_PER_PIXEL["png"])
    count = RouteCount(route="text2img", model="sd", size="input", rows=5, images=5, pixels=pixels)

    lines = printed(plan, Findings(counts=(count,), bad_rows=(), num_bad={}))

    assert any("about 1.5 GB of png" in line for line in lines)
    assert any("parts will be about 500.0 MB each" in line for line in lines) == told


def size_of(rows: int, bytes_per_row: int, model: str = "sd", depth_bytes: int = 0) -> RouteCount:
    """A count of rows whose images have about this size."""
    return RouteCount(
        route="text2img",
        model=model,
        size="input",
        rows=rows,
        images=rows,
        pixels=int(rows * bytes_per_row / TYPICAL_BYTES_PER_PIXEL["png"]),
        depth_pixels=int(rows * depth_bytes / TYPICAL_DEPTH_BYTES_PER_PIXEL),
    )


@pytest.mark.parametrize(
    ("counts", "largest"),
    [
        ([], (0, 0)),
        ([size_of(1, 3000)], (1, 3000)),
        ([size_of(5, 3000), size_of(1, 6000), size_of(9, 300)], (2, 9000)),
        ([size_of(5, 3000), size_of(1, 9000, "xl"), size_of(1, 1500, "xl")], (2, 10_500)),
        ([size_of(5, 3000, depth_bytes=1500)], (2, 9000)),
    ],
)
def test_the_largest_part_has_the_largest_rows_of_one_model(
    spec: JobSpec, counts: list[RouteCount], largest: tuple[int, int]
) -> None:
    """As many of them as a part has, which are two."""
    write_input(spec, prompt=["p"] * 5)
    plan, _ = plan_of(spec)
    findings = Findings(counts=tuple(counts), bad_rows=(), num_bad={})
    files = spec.model_copy(update={"output": spec.output.model_copy(update={"images": "files"})})

    assert largest_part(findings, plan.job) == largest
    assert largest_part(findings, replace(plan.job, spec=files)) == (0, 0)


@pytest.mark.parametrize(
    ("path", "num_bytes", "told"),
    [("s3://out/a", 6 << 30, True), ("s3://out/a", 5 << 29, False), ("/out/a", 6 << 30, False)],
)
def test_a_plan_tells_of_parts_that_not_every_store_takes(
    spec: JobSpec, path: str, num_bytes: int, told: bool
) -> None:
    """The store itself is not asked by a plan, which writes nothing."""
    write_input(spec, prompt=["p"] * 5)
    plan, _ = plan_of(spec)
    on_s3 = spec.model_copy(update={"output": spec.output.model_copy(update={"path": path})})
    plan = replace(plan, job=replace(plan.job, spec=on_s3))

    lines = printed(plan, Findings(counts=(size_of(2, num_bytes // 2),), bad_rows=(), num_bad={}))

    assert any("the largest part may have 6.4 GB: more than 5.4 GB can" in line for line in lines) == told


def test_a_plan_needs_neither_torch_nor_diffusers_nor_ray(spec: JobSpec) -> None:
    """So that it answers at once: importing them takes longer than most plans."""
    write_input(spec, prompt=["p"])
    code = (
        "import sys; from jobs.planning.plan_text import print_plan;"
        "from jobs.planning.plan import make_plan;"
        "from jobs.survey.survey import make_survey; from rich.console import Console;"
        "from schemas.spec.job_spec import JobSpec;"
        "found = make_survey(JobSpec.model_validate_json(sys.stdin.read()));"
        "print_plan(*make_plan(found), Console());"
        "heavy = {'torch', 'diffusers', 'transformers', 'ray', 's3fs'} & set(sys.modules);"
        "assert not heavy, heavy"
    )

    done = subprocess.run(
        [sys.executable, "-c", code],
        input=spec.model_dump_json(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr


def test_a_million_rows_are_planned_in_little_memory(spec: JobSpec) -> None:
    """A plan reads in steps and keeps one line per file: its memory does not grow with the rows."""
    rows = 1_000_000
    picks = np.random.default_rng(0).integers(0, 4, rows)
    write_input(
        spec,
        prompt=pa.DictionaryArray.from_arrays(pa.array(picks), [f"prompt {i}" * 20 for i in range(4)]),
        task=pa.DictionaryArray.from_arrays(pa.array(picks % 2), ["text2img", "poster"]),
        num_inference_steps=pa.array(20 + picks),
        guidance_scale=pa.array(5.0 + picks),
        seed=pa.array(np.arange(rows)),
    )
    code = (
        "import resource, sys; from jobs.planning.plan import make_plan;"
        "from jobs.survey.survey import make_survey;"
        "from schemas.spec.job_spec import JobSpec;"
        "found = make_survey(JobSpec.model_validate_json(sys.stdin.read()));"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "plan, findings = make_plan(found);"
        "grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before;"
        "print(plan.num_rows, sum(findings.num_bad.values()), grown // 1024)"
    )

    done = subprocess.run(
        [sys.executable, "-c", code],
        input=change(spec, batching={"shard_rows": 256}).model_dump_json(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    num_rows, num_bad, grown_mb = map(int, done.stdout.split())

    assert (num_rows, num_bad) == (rows, 0)
    assert grown_mb < 200


def test_routing_needs_no_route_twice() -> None:
    """Rows are routed by pairs of names: a million rows of one pair are resolved once."""
    plan = plan_from([{"sd": 1}], 1)
    router = Router(plan.job.spec, {})

    positions, routes = router.resolve_batch(pa.array([None, "x", None, "x", ""]), None, 5)

    assert [routes[position].name for position in positions] == [
        "text2img",
        "x",
        "text2img",
        "x",
        "text2img",
    ]


def test_ids_of_any_whole_type_keep_their_value(tmp_path: Path) -> None:
    """Hashes as unsigned 64-bit ids are more than the output's int64 holds, and become text."""
    large, small = [2**64 - 1, 7], [-5, 7]
    path = write(tmp_path / "a.parquet", {"row_id": pa.array(large, pa.uint64()), "prompt": ["p", "q"]})
    other = write(tmp_path / "b.parquet", {"row_id": pa.array(small, pa.int32()), "prompt": ["p", "q"]})

    found = []
    for each in (path, other):
        with InputFile(
            open(each, "rb"), map_columns(InputSchemas({"x": pq.read_schema(each)}), InputSpec(path="x"))
        ) as opened:
            found += [batch.fields["row_id"].to_pylist() for batch in opened.read_rows(0)]

    assert found == [[str(2**64 - 1), "7"], small]


@pytest.mark.parametrize(
    ("path", "files"),
    [
        ("s3://inp", 6),
        ("s3://inp/plan/", 6),
        ("s3://inp/plan/day=1", 2),
        ("S3://inp/plan/day=0/f0.parquet", 1),
        ("s3://inp/plan/day=[12]/*.parquet", 4),
        ("s3://inp/**/f0.parquet", 3),
    ],
)
def test_input_in_a_bucket_is_found_as_on_disk(
    s3_env: S3Server, spec: JobSpec, path: str, files: int
) -> None:
    """A whole bucket, a folder, an object and a pattern."""
    storage = open_storage("s3://inp")
    for number in range(6):
        storage.create(f"s3://inp/plan/day={number % 3}/f{number // 3}.parquet", b"rows", {})

    looking = change(spec, input={"path": path})
    found = [stored.uri for stored in files_of(looking)]

    assert sum(uri.startswith("s3://inp/plan/") for uri in found) == files


@pytest.mark.parametrize(
    ("dtype", "force_upcast", "kernels", "said"),
    [
        ("auto", None, {}, "VAE of xl on a GPU: float32, because float16 does not hold it"),
        ("float16", True, {}, "about 9 % of the time of an image"),
        ("float16", True, {"vae_dtype": "bfloat16"}, "VAE of xl: it decodes in bfloat16"),
        ("float16", False, {"vae_dtype": "bfloat16"}, "VAE of xl: float16, which its configuration allows"),
        ("bfloat16", True, {}, ""),
    ],
)
def test_a_plan_says_in_which_precision_the_vae_of_xl_is(
    spec: JobSpec, tmp_path: Path, dtype: str, force_upcast: bool | None, kernels: Columns, said: str
) -> None:
    """Stable Diffusion's own pipelines decode as the UNet computes, and the plan says nothing of them."""
    folder = tmp_path / "xl"
    shutil.copytree(spec.models["xl"].checkpoint, folder)
    config = folder / "vae" / "config.json"
    if force_upcast is not None:
        config.write_text(json.dumps(json.loads(config.read_text()) | {"force_upcast": force_upcast}))
    models = {**spec.model_dump()["models"], "xl": {"checkpoint": str(folder), "dtype": dtype}}
    write_input(spec, prompt=["p"])

    lines = printed(*plan_of(change(spec, models=models, kernels=kernels)))

    about = [line for line in lines if line.startswith("VAE of")]
    assert len(about) == bool(said)
    assert said in "".join(about)
