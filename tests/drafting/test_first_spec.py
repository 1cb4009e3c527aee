"""Facts about `darkroom init`: what it finds in an input, and that the spec that it writes runs."""

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.drafting.first_spec import name_of
from jobs.drafting.spec_text import as_yaml
from schemas.spec.job_spec import JobSpec
from schemas.spec.spec_file import load_spec
from schemas.spec.strict_yaml import parse_yaml
from tests.support.checkpoints import paper_checkpoint
from tests.support.running import Finished, assert_refused, darkroom, darkroom_here

IMAGE = [b"not looked at"]


def init(folder: Path, name: str, *options: str) -> Finished:
    """What `darkroom init NAME` does in a folder."""
    return darkroom_here("init", name, *options, cwd=folder)


def drafted(folder: Path, name: str, *options: str, spec: str = "spec.yaml") -> JobSpec:
    """The spec that is written for an input."""
    ended = init(folder, name, "--spec", spec, *options)
    assert ended.code == 0, ended.err
    return load_spec(folder / spec)


def write_table(folder: Path, **columns: object) -> str:
    pq.write_table(pa.table(columns), folder / "rows.parquet")
    return "rows.parquet"


TEXTS = {
    "prompts.txt": b"a circle\n# a star\n\nC: \\d\n",
    "it's #1, yes.csv": (
        b'\xef\xbb\xbfid,caption,seed,score\r\n007,"a ""red"", circle",1,x\r\n8,a star,,\r\n9,,3,"y, z"\r\n'
    ),
    "rows.tsv": b"prompt\tsteps\na circle\t4\n",
    "keys.jsonl": b'{"prompt": "a circle", "meta": {"a": 1}}\n{"prompt": "a star", "seed": 7}\n',
    "packed.jsonl.gz": gzip.compress(b'{"text": "a circle", "task": "text2img", "model": "mine"}\n'),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_spec_for_a_text_file_is_planned_as_it_is(tmp_path: Path, name: str) -> None:
    """Whatever the file is called, and however its rows are written."""
    (tmp_path / name).write_bytes(TEXTS[name])

    ended = init(tmp_path, name)

    (spec,) = tmp_path.glob("*.yaml")
    planned = darkroom_here("plan", spec.name, cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert f"darkroom run {spec.name}" in ended.out
    assert planned.code == 0, planned.err
    assert load_spec(spec).input.path == name


def test_the_spec_of_an_input_runs(tmp_path: Path) -> None:
    """From the folder where it was written, and into the output that it names."""
    (tmp_path / "prompts.txt").write_text("a big red circle\na blue star\n")
    init(tmp_path, "prompts.txt")

    ended = darkroom("run", "prompts.yaml", "--set", "routes.text2img.num_inference_steps=1", cwd=tmp_path)

    assert ended.code == 0, ended.err
    assert darkroom_here("verify", "out/prompts", cwd=tmp_path).code == 0


@pytest.mark.parametrize(
    ("columns", "model", "task"),
    [
        (["prompt"], "demo:sd", "text2img"),
        (["prompt", "image"], "demo:sd", "img2img"),
        (["prompt", "image", "mask_image"], "demo:sd", "inpaint"),
        (["prompt", "image"], "demo:upscale", "upscale"),
        (["prompt", "image"], "demo:variation", "variation"),
        (["prompt", "init_image", "mask"], "demo:sd", "inpaint"),
    ],
)
def test_the_task_follows_from_the_columns_and_the_model(
    tmp_path: Path, columns: list[str], model: str, task: str
) -> None:
    """It is the one that uses the most images."""
    rows = {name: ["a circle"] if name == "prompt" else IMAGE for name in columns}

    spec = drafted(tmp_path, write_table(tmp_path, **rows), "--model", model)

    assert [*spec.routes] == [task]


def test_images_without_prompts_are_varied(tmp_path: Path) -> None:
    """By the only model that needs no prompt."""
    spec = drafted(tmp_path, write_table(tmp_path, image=IMAGE))

    assert [*spec.routes] == ["variation"]
    assert [model.checkpoint for model in spec.models.values()] == ["demo:variation"]


def test_rows_with_tasks_get_a_route_for_each(tmp_path: Path) -> None:
    """And the first is that of rows without one."""
    table = write_table(tmp_path, prompt=["a", "b", "c"], image=IMAGE * 3, task=["img2img", None, "text2img"])

    spec = drafted(tmp_path, table)

    assert [*spec.routes] == ["img2img", "text2img"]
    assert spec.default_route == "img2img"


def test_each_model_gets_values_that_suit_it(tmp_path: Path) -> None:
    """The shapes those of their card, a few-step model its recipe, others the published defaults."""
    table = write_table(tmp_path, prompt=["a circle"])
    few_steps = paper_checkpoint(tmp_path / "sd-turbo")
    ordinary = paper_checkpoint(tmp_path / "sd", sample_size=96)

    shapes = drafted(tmp_path, table, spec="a.yaml").routes["text2img"]
    turbo = drafted(tmp_path, table, "--model", str(few_steps), spec="b.yaml").routes["text2img"]
    other = drafted(tmp_path, table, "--model", str(ordinary), spec="c.yaml").routes["text2img"]

    assert (shapes.num_inference_steps, shapes.guidance_scale) == (20, 2.5)
    assert (turbo.recipe, turbo.num_inference_steps) == ("turbo", None)
    assert (other.num_inference_steps, other.guidance_scale) == (50, 7.5)
    assert "whose own size is 768x768" in (tmp_path / "c.yaml").read_text()


def test_a_column_that_would_fail_its_rows_is_left_unread(tmp_path: Path) -> None:
    """The spec says which, and why; what no field reads is kept, unless it may be large."""
    table = write_table(
        tmp_path,
        prompt=["a circle"],
        text=["a star"],
        image_url=["https://example.com/a.png"],
        width=[333],
        model=["mine"],
        loras=["{}"],
        score=[0.5],
        vector=[[1.0, 2.0]],
        file=[b"bytes"],
    )

    spec = drafted(tmp_path, table)

    planned = darkroom_here("plan", "spec.yaml", cwd=tmp_path)
    assert spec.input.columns == {"width": None, "model": None, "loras": None}
    assert spec.input.keep == ["text", "image_url", "score"]
    assert "# Its values would have to be names under `models`." in (tmp_path / "spec.yaml").read_text()
    assert planned.code == 0, planned.err


def test_one_of_two_columns_for_a_field_is_chosen_and_the_other_named(tmp_path: Path) -> None:
    """A plan would refuse to guess; a draft may."""
    spec = drafted(tmp_path, write_table(tmp_path, caption=["a circle"], text=["a star"]))

    assert spec.input.columns == {"prompt": "caption"}
    assert "# It could be text too." in (tmp_path / "spec.yaml").read_text()


def test_control_images_are_not_forgotten(tmp_path: Path) -> None:
    """They need a ControlNet, which the user has to name."""
    spec = drafted(tmp_path, write_table(tmp_path, prompt=["a circle"], control_image=IMAGE))

    assert [*spec.routes] == ["text2img"]
    assert "controlnets: {NAME: OWNER/CONTROLNET}" in (tmp_path / "spec.yaml").read_text()


def test_the_prompts_of_an_unknown_column_are_found_or_asked_for(tmp_path: Path) -> None:
    """A single column of texts has them; of several, the user names one."""
    (tmp_path / "one.csv").write_text("Description\na circle\n")
    (tmp_path / "two.csv").write_text("Name,Description\nx,a circle\n")

    spec = drafted(tmp_path, "one.csv")
    asked = init(tmp_path, "two.csv")
    named = drafted(tmp_path, "two.csv", "--prompt-column", "Description", spec="two.yaml")

    assert spec.input.columns == {"prompt": "Description"}
    assert_refused(asked, "Name, Description", "--prompt-column")
    assert named.input.columns == {"prompt": "Description"}


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (("nothing.txt",), ("nothing.txt",)),
        (("pictures",), ("a.png", "a column `image`")),
        (
            ("rows.csv", "--model", "demo:upscale"),
            ("demo:upscale can do upscale", "`image`", "text2img (sd)"),
        ),
        (("tasks.csv",), ("the column `task` asks for img2img, which needs `image`",)),
        (("tasks.csv", "--model", "demo:variation"), ("cannot do", "families sd, sdxl", "--model")),
        (("rows.csv", "--model", "demo:nope"), ("--model", "'nope'; choose one of")),
        (("rows.csv", "--model", "https://x/y"), ("the new spec", "not an address")),
        (("rows.csv", "--prompt-column", "nope"), ("no column `nope`", "prompt")),
        (("rows.csv", "--spec", "no/folder.yaml"), ("no/folder.yaml", "--spec")),
    ],
)
def test_an_input_without_a_spec_that_runs_is_refused(
    tmp_path: Path, arguments: tuple[str, ...], texts: tuple[str, ...]
) -> None:
    """With what it lacks, or what could do it; and nothing is written."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"picture")
    (tmp_path / "rows.csv").write_text("prompt\na circle\n")
    (tmp_path / "tasks.csv").write_text("prompt,task\na circle,img2img\n")

    ended = init(tmp_path, *arguments)

    assert_refused(ended, *texts)
    assert not [*tmp_path.glob("*.yaml")]


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    """The refusal names another one."""
    (tmp_path / "prompts.txt").write_text("a circle\n")
    (tmp_path / "prompts.yaml").write_text("mine\n")

    ended = init(tmp_path, "prompts.txt")

    assert ended.code == 4
    assert "prompts.yaml exists" in ended.err
    assert "--spec prompts-2.yaml" in ended.err
    assert (tmp_path / "prompts.yaml").read_text() == "mine\n"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("prompts.txt", "prompts"),
        ("a b/c: d.csv.gz", "c-d"),
        ("s3://bucket/rows/*.parquet", "rows"),
        ("s3://bucket", "bucket"),
        ("hf://datasets/org/name", "name"),
        ("_.txt", "images"),
        ("/data/v1.5/", "v1"),
    ],
)
def test_a_job_is_named_after_its_input(path: str, name: str) -> None:
    """In the letters that a name may have."""
    assert name_of(path) == name


@pytest.mark.parametrize(
    "value",
    [
        "a: b",
        "# 1",
        "no",
        "007",
        "1e3",
        "it's",
        '"',
        "- x",
        "{a}",
        "a, b",
        "~",
        "é",
        "",
        "x" * 300,
        None,
        2.5,
        ["a, b", "c]", "null"],
    ],
)
def test_a_value_is_written_as_yaml_that_reads_as_itself(value: object) -> None:
    """In one line, also where YAML would read a name as something else."""
    text = as_yaml(value)

    assert "\n" not in text
    assert parse_yaml(f"key: {text}\n", "test")[0] == {"key": value}
