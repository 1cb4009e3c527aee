"""What the plan prints of samplers' names, of other tools' signs in prompts, and of graphs to compile."""

from pathlib import Path

import pytest

from jobs.planning.graph_counts import graph_lines
from jobs.planning.plan import make_plan
from jobs.planning.prompt_signs import MAX_FILES, MAX_ROWS
from jobs.planning.readings import reading_lines
from jobs.survey.survey import make_survey
from tests.support.in_process import Record, drawn_image, job_spec, write_rows


def readings(folder: Path, *files: list[Record], **route: object) -> list[str]:
    """The lines that the plan prints for an input of these files."""
    (folder / "in").mkdir()
    for number, rows in enumerate(files):
        write_rows(folder / "in" / f"{number}.parquet", rows)
    spec = job_spec(folder / "in", folder / "out", routes={"text2img": {"model": "sd"} | route})
    return reading_lines(*make_plan(make_survey(spec)))


def test_each_samplers_name_is_printed_once_with_its_reading(tmp_path: Path) -> None:
    """Names of routes come first; classes and unknown names have no reading."""
    names = ["k_lms", "Euler a", "k_lms", None, "DDIMScheduler", "nonsense"]
    rows = [{"prompt": "x", "scheduler": name} for name in names]

    lines = readings(tmp_path, rows, rows, scheduler="DPM++ 2M Karras")

    assert lines == [
        "scheduler `DPM++ 2M Karras` is read as DPMSolverMultistepScheduler with use_karras_sigmas: true",
        "scheduler `Euler a` is read as EulerAncestralDiscreteScheduler",
        "scheduler `k_lms` is read as LMSDiscreteScheduler",
    ]


@pytest.mark.parametrize(
    ("sign", "prompts", "others"),
    [
        ("<lora:...>", ["a fox <lora:ink:0.8>", "<lyco:ink>"], ["a < b", "lora: the river"]),
        ("embedding:...", ["embedding:EasyNegative, blur"], ["an embedding: steel", "preembedding:x"]),
        ("BREAK", ["a fox BREAK snow", "BREAK"], ["break of day", "BREAKFAST"]),
        ("[from:to:when]", ["a [fox:owl:0.5]", "[:owl:10]"], ["at [12:30]", "[a|b]", "[[fox]]"]),
        ("(text:1.2)", ["a (red fox:1.2)", "(fox: 1)"], ["(1912)", "(a: b)", "((fox))"]),
    ],
)
def test_a_sign_of_another_tool_is_counted(
    tmp_path: Path, sign: str, prompts: list[str], others: list[str]
) -> None:
    """Ordinary text is none, and a row with a sign in both of its texts counts once."""
    rows: list[Record] = [{"prompt": prompt, "negative_prompt": None} for prompt in (*prompts, *others)]
    rows += [{"prompt": prompts[0], "negative_prompt": prompts[0]}]

    (line,) = readings(tmp_path, rows)

    assert line.startswith(
        f"{len(prompts) + 1} of {len(rows)} rows have `{sign}` in a prompt: it is read as text, "
    )


def test_a_sign_in_a_negative_prompt_alone_is_counted(tmp_path: Path) -> None:
    """Embeddings mostly stand there."""
    rows = [{"prompt": "x", "negative_prompt": "embedding:bad"}, {"prompt": None, "negative_prompt": None}]

    (line,) = readings(tmp_path, rows)

    assert (
        line
        == "1 of 2 rows has `embedding:...` in a prompt: it is read as text, no embedding is loaded; see "
        "models.NAME.embeddings"
    )


def test_a_plan_looks_into_a_few_files_and_says_at_how_many_rows(tmp_path: Path) -> None:
    """The first and the last file are among them, and a file's rows past the limit are not."""
    files: list[list[Record]] = [[{"prompt": "BREAK" if number in (0, 6) else "x"}] for number in range(7)]
    files[0] += [{"prompt": "x"}] * (MAX_ROWS - 1) + [{"prompt": "BREAK"}] * 5

    (line,) = readings(tmp_path, *files)

    looked_at = MAX_ROWS + MAX_FILES - 1
    assert line.startswith(f"2 of the {looked_at:,} rows looked at have `BREAK` in a prompt")


def test_an_input_without_signs_and_names_has_no_such_lines(tmp_path: Path) -> None:
    """The plan is not longer for those who need none of it."""
    assert readings(tmp_path, [{"prompt": "a fox", "scheduler": "DDIMScheduler"}]) == []


@pytest.mark.parametrize(
    ("rows", "settings", "line"),
    [
        # demo:sd has 9 shapes of blocks in its UNet, and 8 in its decoder, which gets batches of 2 sizes.
        ([{}], {}, "61 graphs for 1 image size"),
        ([{"height": 64}, {"height": 72}, {"width": 72}], {}, "183 graphs for 3 image sizes"),
        # Rows without guidance go in batches of 7 sizes together with others.
        ([{"guidance_scale": 1.0}], {}, "79 graphs for 1 image size"),
        ([{"task": "safe"}], {}, "61 graphs for 1 image size"),
        (
            [{"task": "img2img"}, {}],
            {},
            "61 graphs for 1 image size and 61 graphs for each size of its input images",
        ),
        (
            [{}],
            {"long_prompts": "chunk"},
            "61 graphs for 1 image size, and as many again for each number of windows",
        ),
        ([{}], {"batching": {"max_batch_rows": 1, "compile": True}}, "17 graphs for 1 image size"),
    ],
)
def test_the_graphs_that_are_compiled_are_counted(
    tmp_path: Path, rows: list[Record], settings: dict[str, object], line: str
) -> None:
    """At most so many: a batch size, or a shape that two image sizes share, may not come up."""
    image = drawn_image()
    filled = [{"prompt": "x", "image": image, "height": None, "width": None} | row for row in rows]
    routes = {task: {"model": "sd"} for task in ("text2img", "img2img", "safe")}
    batching = {"max_batch_rows": 16, "compile": True}
    spec = job_spec(
        write_rows(tmp_path / "rows.parquet", filled),
        tmp_path / "out",
        **{"routes": routes, "batching": batching, **settings},
    )
    plan, findings = make_plan(make_survey(spec))

    (printed,) = graph_lines(plan.job, findings)

    assert printed.startswith(f"batching.compile: sd needs at most {line}")


def test_nothing_is_said_of_graphs_if_nothing_is_compiled(tmp_path: Path) -> None:
    """`batching.compile` is false by default."""
    spec = job_spec(write_rows(tmp_path / "rows.parquet", [{"prompt": "x"}]), tmp_path / "out")
    plan, findings = make_plan(make_survey(spec))

    assert not [*graph_lines(plan.job, findings)]
