"""LoRAs of rows: the columns that name them, the errors of rows, what the plan counts and the output has."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from actors.checkpoints.component_files import files_on_hub
from actors.images.image_uris import UriJudge
from actors.images.spool import Spool
from actors.inputs.input_file import InputFile
from actors.rows.checks import check_batch
from actors.rows.routing import Router
from actors.rows.row import build_rows
from actors.storage.output import open_output
from jobs.output.job_record import claim
from jobs.output.resumption import plan_of, survey_of
from jobs.planning.plan import make_plan
from jobs.planning.plan_text import print_plan
from jobs.reports.sheet.thumbnails import text
from jobs.survey.survey import make_survey
from schemas.columns.input_columns import map_columns
from schemas.columns.input_schemas import InputSchemas
from schemas.columns.output_columns import WEIGHTS_TYPE
from schemas.errors import RefusedError, SpecError
from schemas.spec.job_spec import InputSpec, JobSpec
from schemas.systems.model_card import AdapterFile
from tests.adapters.lora_forms import kohya, layers_of, write
from tests.support.checkpoints import model_card
from tests.support.engines import NoiseEngine
from tests.support.fake_hub import serve_hub
from tests.support.in_process import Record, job_spec, make, write_rows

ROUTES: dict[str, Any] = {
    "text2img": {"model": "sd"},
    "styled": {"task": "text2img", "model": "sd", "loras": {"chalk": 0.8}},
    "safe": {"model": "sd"},
    "chained": {"task": "text2img", "model": "sd", "then": ["again"]},
    "again": {"task": "img2img", "model": "sd", "loras": {"ink": 0.3}},
}
NAMES = ("chalk", "ink", "a.b")
FILES = {
    name: AdapterFile(name=name, path=f"/{name}", sha256=f"{number}" * 64, size_bytes=1)
    for number, name in enumerate(NAMES)
}
MODELS = {"sd": model_card(loras=FILES), "bare": model_card()}
SPEC = JobSpec.model_validate(
    {
        "version": 1,
        "name": "rows",
        "input": {"path": "x"},
        "models": {
            "sd": {"checkpoint": "a/b", "loras": dict.fromkeys(NAMES, "a/b")},
            "bare": {"checkpoint": "a/b"},
        },
        "routes": ROUTES,
        "default_route": "text2img",
        "output": {"path": "out"},
    }
)
NAME_AND_WEIGHT = pa.list_(pa.struct([("name", pa.string()), ("weight", pa.float32())]))


def checked(rows: Sequence[Record], arrow_type: pa.DataType) -> tuple[list[Any], dict[int, tuple[str, str]]]:
    """(weights of the good rows, problems by row) of rows whose column `loras` has this type."""
    table = pa.table(
        {
            "prompt": ["x"] * len(rows),
            "task": pa.array([row.get("task") for row in rows], pa.string()),
            "model": pa.array([row.get("model") for row in rows], pa.string()),
            "loras": pa.array([row.get("loras") for row in rows], arrow_type),
        }
    )
    source = io.BytesIO()
    pq.write_table(table, source)
    columns = map_columns(InputSchemas({"x": table.schema}), InputSpec(path="x"))
    with InputFile(source, columns) as opened:
        (batch,) = opened.read_rows(0)
        result = check_batch(batch, Router(SPEC, MODELS), MODELS, UriJudge("/in/rows.parquet"))
        built = build_rows(
            result, [*range(len(rows))], file_name="f", first_index=0, job_seed=0, spool=Spool()
        )
        weights = [row.parameters.get("loras") for row in built if row.problem is None]
    return weights, {row: (error.code, error.message) for row, error in result.problems.items()}


BOTH = '{"chalk":-2.0,"ink":0.1}'


@pytest.mark.parametrize(
    ("arrow_type", "value", "expected"),
    [
        (pa.string(), '{"ink": 0.1, "chalk": -2, "a.b": 0}', BOTH),
        (pa.large_string(), '{"chalk": -2.0, "a.b": null, "ink": 1e-1}', BOTH),
        (NAME_AND_WEIGHT, [{"name": "ink", "weight": 0.1}, {"name": "chalk", "weight": -2}], BOTH),
        (NAME_AND_WEIGHT, [], "{}"),
        # Columns from CSV files have empty texts.
        (pa.string(), "", "{}"),
        (
            pa.large_list(pa.struct([("weight", pa.int8()), ("name", pa.large_string())])),
            [{"name": "chalk", "weight": -2}, {"name": "ink", "weight": 0}, None],
            '{"chalk":-2.0}',
        ),
        (WEIGHTS_TYPE, [{"name": "ink", "weight": 0.1, "sha256": "f" * 64}], '{"ink":0.1}'),
        (pa.map_(pa.string(), pa.float16()), [("ink", 0.1), ("chalk", -2.0)], BOTH),
        (
            pa.struct([("chalk", pa.float64()), ("a.b", pa.int64()), ("ink", pa.float32())]),
            {"chalk": -2.0, "ink": 0.1},
            BOTH,
        ),
    ],
    ids=str,
)
def test_weights_of_each_type_become_one_text(arrow_type: pa.DataType, value: Any, expected: str) -> None:
    """Sorted by name, without nulls and zeros; a single 0.1 is the 0.1 that somebody wrote."""
    weights, problems = checked([{"loras": value}, {"loras": None}], arrow_type)

    assert problems == {}
    assert weights == [expected, "{}"]


def test_a_row_overrides_the_loras_of_its_route() -> None:
    """Null is the route's; {} is none, which rows of the task safe may say too, though it takes none."""
    rows = [
        {"task": "styled", "loras": None},
        {"task": "styled", "loras": "{}"},
        {"task": "styled", "loras": '{"chalk": 0}'},
        {"task": "styled", "loras": '{"ink": 1}'},
        {"task": "safe", "loras": " {} "},
    ]

    weights, problems = checked(rows, pa.string())

    assert problems == {}
    assert weights == ['{"chalk":0.8}', "{}", "{}", '{"ink":1.0}', None]


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ('{"chak": 1}', "unknown_lora", "model `sd` has no LoRA `chak` (did you mean `chalk`?)"),
        ('{"zzz": 0}', "unknown_lora", "model `sd` has no LoRA `zzz`; it has chalk, ink, a.b"),
        ('{"/etc/x.safetensors": 1}', "unknown_lora", "LoRAs are named in models.sd.loras"),
        ('{"chalk": 10.01}', "invalid_parameter", "`chalk` is 10.01; it must be a number from -10 to 10"),
        ('{"chalk": 1e999}', "invalid_parameter", "must be a number from -10 to 10"),
        ('{"chalk": NaN}', "invalid_parameter", "NaN is not a JSON number"),
        ('{"chalk": "high"}', "invalid_parameter", "is high, which is not a number"),
        ('{"chalk": true}', "invalid_parameter", "is true, which is not a number"),
        ('{"chalk": [1]}', "invalid_parameter", "which is not a number"),
        ('{"chalk": 1, "chalk": 2}', "invalid_parameter", "a name appears in it twice"),
        ('["chalk"]', "invalid_parameter", "it is not a JSON object"),
        ("chalk", "invalid_parameter", 'loras is chalk: it is not a JSON object such as {"chalk": 0.8}'),
        ("chalk:0.5", "invalid_parameter", 'it is not a JSON object such as {"chalk": 0.8}'),
        ("[" * 3000, "invalid_parameter", "nested too deeply"),
        (json.dumps({f"l{number}": 1 for number in range(17)}), "invalid_parameter", "it has 17 of them"),
        ('{"chalk": 1}' + " " * 4096, "text_too_long", ""),
    ],
)
def test_wrong_loras_fail_their_row(text: str, code: str, says: str) -> None:
    """And no other."""
    weights, problems = checked([{"loras": '{"ink": 1}'}, {"loras": text}, {"loras": None}], pa.string())

    assert weights == ['{"ink":1.0}', "{}"]
    assert [*problems] == [1]
    assert problems[1][0] == code
    assert says in problems[1][1]


@pytest.mark.parametrize(
    ("value", "arrow_type"),
    [
        ([{"name": "chalk", "weight": 1}, {"name": "chalk", "weight": 1}], NAME_AND_WEIGHT),
        ([{"name": "chalk", "weight": float("nan")}], NAME_AND_WEIGHT),
        ([("chalk", 1.0), ("chalk", 1.0)], pa.map_(pa.string(), pa.float64())),
        ({"chalk": float("inf")}, pa.struct([("chalk", pa.float64())])),
    ],
)
def test_a_list_or_map_can_be_as_wrong_as_a_text(value: Any, arrow_type: pa.DataType) -> None:
    _, problems = checked([{"loras": value}], arrow_type)

    assert problems[0][0] == "invalid_parameter"


@pytest.mark.parametrize(
    "arrow_type",
    [pa.list_(pa.string()), pa.float64(), pa.struct([("name", pa.string()), ("weight", pa.int8())])],
)
def test_a_column_of_another_type_is_refused(arrow_type: pa.DataType) -> None:
    with pytest.raises(SpecError, match=r"the field `loras` needs JSON text, a list of structs of name and"):
        checked([{"loras": None}], arrow_type)


def test_a_row_that_names_another_model_is_told_of_its_routes_loras() -> None:
    """The route was checked with its own model only."""
    rows = [{"task": "styled", "model": "bare"}, {"task": "styled", "model": "bare", "loras": "{}"}]

    weights, problems = checked(rows, pa.string())

    assert weights == ["{}"]
    assert problems[0][0] == "unknown_lora"
    assert problems[0][1].endswith("The LoRAs come from the route; set loras to {} for a row without")


@pytest.fixture
def loras(tmp_path: Path) -> dict[str, str]:
    """Files of two LoRAs for demo:sd, by name."""
    layers = layers_of("sd", "unet")
    return {
        "chalk": str(write(tmp_path / "loras" / "chalk.safetensors", kohya("sd", layers))),
        "ink": str(write(tmp_path / "loras" / "ink.safetensors", kohya("sd", layers[:4]))),
    }


def spec_of(folder: Path, loras: dict[str, Any], rows: Sequence[Record], routes: Any = ROUTES) -> JobSpec:
    path = write_rows(folder / "rows.parquet", rows)
    return job_spec(
        path, folder / "out", models={"sd": {"checkpoint": "demo:sd", "loras": loras}}, routes=routes
    )


ROWS: list[Record] = [
    {"row_id": "none", "prompt": "a fox"},
    {"row_id": "one", "prompt": "a fox", "loras": '{"chalk": 0.5}'},
    {"row_id": "two", "prompt": "a fox", "loras": '{"ink": 1, "chalk": -1}'},
    {"row_id": "routes", "prompt": "a fox", "task": "styled"},
    {"row_id": "safe", "prompt": "a fox", "task": "safe"},
    {"row_id": "styled safe", "prompt": "a fox", "task": "safe", "loras": '{"chalk": 0.5}'},
    {"row_id": "chain", "prompt": "a fox", "task": "chained", "loras": '{"chalk": 0.5}'},
    {"row_id": "wrong", "prompt": "a fox", "loras": '{"chak": 1}'},
]


def test_a_plan_says_how_many_rows_apply_each_lora(tmp_path: Path, loras: dict[str, str]) -> None:
    """A later step's LoRAs count, and a row that fails does not."""
    unused = {"unused": loras["ink"]}
    console = Console(file=io.StringIO(), width=200)

    plan, findings = make_plan(make_survey(spec_of(tmp_path, loras | unused, ROWS)))
    print_plan(plan, findings, console)

    assert findings.adapter_rows == {("LoRA", "sd", "chalk"): 4, ("LoRA", "sd", "ink"): 2}
    assert [str(bad.problem) for bad in findings.bad_rows if bad.row_id == "styled safe"] == [
        'invalid_parameter: loras is {"chalk": 0.5}, and StableDiffusionPipelineSafe takes no LoRAs; leave '
        "loras empty for this row"
    ]
    assert findings.num_bad == {"invalid_parameter": 1, "unknown_lora": 1}
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    size = Path(loras["ink"]).stat().st_size / 1000
    assert f"LoRA ink of sd: {size:.1f} kB, 2 rows" in printed
    assert f"LoRA unused of sd: {size:.1f} kB, 0 rows" in printed


def test_a_plan_of_many_loras_lists_those_that_most_rows_apply(tmp_path: Path, loras: dict[str, str]) -> None:
    many = {f"l{number}": loras["ink"] for number in range(25)}
    rows = [{"row_id": f"{n}", "prompt": "x", "loras": f'{{"l{n}": 1}}'} for n in (23, 24)]
    spec = spec_of(tmp_path, many, rows, {"text2img": {"model": "sd"}})
    console = Console(file=io.StringIO(), width=200)

    print_plan(*make_plan(make_survey(spec)), console)

    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "LoRA l24 of sd" in printed
    assert "LoRA l19 of sd" not in printed
    assert "and 5 more adapters: " in printed
    assert "no row applies 5 of them" in printed


def test_the_output_has_the_loras_that_were_applied_and_can_be_an_input_again(
    tmp_path: Path, loras: dict[str, str]
) -> None:
    """With the hashes of their files. Rows without have none, and rows whose task takes none have null."""
    made = make(spec_of(tmp_path, loras, ROWS), NoiseEngine(0.0))

    hashes = {name: file.sha256 for name, file in made.plan.job.models["sd"].loras.items()}
    applied = {row["row_id"]: row["loras"] for row in made.rows}
    assert applied == {
        "none": [],
        "one": [{"name": "chalk", "weight": 0.5, "sha256": hashes["chalk"]}],
        "two": [
            {"name": "chalk", "weight": -1.0, "sha256": hashes["chalk"]},
            {"name": "ink", "weight": 1.0, "sha256": hashes["ink"]},
        ],
        "routes": [{"name": "chalk", "weight": 0.8, "sha256": hashes["chalk"]}],
        "safe": None,
        "styled safe": None,
        "chain": [{"name": "chalk", "weight": 0.5, "sha256": hashes["chalk"]}],
        "wrong": None,
    }

    again = job_spec(
        tmp_path / "out" / "data",
        tmp_path / "again",
        models={"sd": {"checkpoint": "demo:sd", "loras": loras}},
        routes=ROUTES,
    )
    made_again = make(again, NoiseEngine(0.0))

    assert {row["row_id"]: row["loras"] for row in made_again.rows} == applied | {"wrong": []}


def test_an_output_has_no_column_of_loras_if_no_model_has_any(tmp_path: Path) -> None:
    routes = {"text2img": {"model": "sd"}}
    spec = job_spec(write_rows(tmp_path / "rows.parquet", ROWS[:1]), tmp_path / "out", routes=routes)

    assert "loras" not in make(spec, NoiseEngine(0.0)).rows[0]


def test_a_changed_lora_is_refused_when_a_job_goes_on(tmp_path: Path, loras: dict[str, str]) -> None:
    """A moved one too, as a moved checkpoint is; the same files are not."""
    spec = spec_of(tmp_path, loras, ROWS)
    plan, findings = make_plan(make_survey(spec))
    record = claim(open_output(spec.output.path), plan, findings)
    assert plan_of(record, survey_of(spec, record), "out").job.fingerprint == record.fingerprint

    write(Path(loras["ink"]), kohya("sd", layers_of("sd", "unet")[:5]))

    with pytest.raises(RefusedError, match=r"models.sd.loras.ink: was \"[0-9a-f]{64}\", is now \""):
        plan_of(record, survey_of(spec, record), "out")


def test_a_job_goes_on_with_the_commit_of_a_lora_that_it_began_with(
    tmp_path: Path, loras: dict[str, str], use_hub: Any
) -> None:
    """Wherever the branch is now. The spec may name the commit too."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, count in ((first, 3), (second, 4)):
        write(folder / "chalk.safetensors", kohya("sd", layers_of("sd", "unet")[:count]))
    spec = spec_of(tmp_path, loras | {"chalk": "pinned/lora"}, ROWS)
    with serve_hub({"pinned/lora": first}) as (address, _):
        use_hub(address)
        files_on_hub.cache_clear()
        plan, findings = make_plan(make_survey(spec))
    record = claim(open_output(spec.output.path), plan, findings)
    commit = plan.job.models["sd"].loras["chalk"].revision

    with serve_hub({"pinned/lora": [first, second]}) as (address, _):
        use_hub(address)
        files_on_hub.cache_clear()
        named = spec_of(tmp_path, loras | {"chalk": {"path": "pinned/lora", "revision": commit}}, ROWS)
        jobs = [plan_of(record, survey_of(each, record), "out").job for each in (spec, named)]

    assert [each.fingerprint for each in jobs] == [record.fingerprint] * 2
    assert [each.models["sd"].loras["chalk"].revision for each in jobs] == [commit] * 2


def test_the_contact_sheet_has_the_loras_of_a_row_by_name_and_weight(
    tmp_path: Path, loras: dict[str, str]
) -> None:
    """And not the hashes of their files."""
    made = make(spec_of(tmp_path, loras, ROWS), NoiseEngine(0.0))

    (two,) = (row for row in made.rows if row["row_id"] == "two")

    assert text(two["loras"]) == "chalk -1, ink 1"
    assert [text(other) for other in (["a"], [{"name": "a"}], "chalk")] == [
        "['a']",
        "[{'name': 'a'}]",
        "chalk",
    ]
