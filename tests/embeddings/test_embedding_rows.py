"""Learned tokens in the texts of rows: what the plan counts and refuses, and what the output has of them."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from diffusers.loaders import TextualInversionLoaderMixin
from rich.console import Console

from actors.engine.quirks.pipeline_overrides import with_all_vectors
from actors.rows.adapters.embedding_checks import learned_tokens_in
from actors.storage.output import open_output
from demo import small_components
from demo.random_embeddings import save_embedding
from jobs.output.job_record import claim
from jobs.output.resumption import plan_of, survey_of
from jobs.planning.plan import make_plan
from jobs.planning.plan_text import print_plan
from jobs.reports.sheet.thumbnails import text
from jobs.survey.survey import make_survey
from schemas.errors import RefusedError
from schemas.spec.job_spec import JobSpec
from tests.support.checkpoints import demo
from tests.support.engines import NoiseEngine
from tests.support.in_process import Record, job_spec, make, write_rows

ROUTES: dict[str, Any] = {
    "text2img": {"model": "sd"},
    "safe": {"model": "sd"},
    "chained": {"task": "text2img", "model": "bare", "then": ["again"]},
    "again": {"task": "img2img", "model": "sd"},
}
ROWS: list[Record] = [
    {"row_id": "none", "prompt": "a fox"},
    {"row_id": "one", "prompt": "a <cat> and a <cat>"},
    {"row_id": "both", "prompt": "a <cat>", "negative_prompt": "BAD"},
    {"row_id": "bare", "prompt": "a <cat>", "model": "bare"},
    {"row_id": "chain", "prompt": "a <cat>", "task": "chained"},
    {"row_id": "safe", "prompt": "a fox", "negative_prompt": None, "task": "safe"},
    {"row_id": "unread", "prompt": "a fox", "negative_prompt": "bad", "task": "safe"},
    {"row_id": "inner-later", "prompt": "bad, badly", "task": "chained"},
    {"row_id": "inner", "prompt": "bad, badly"},
    {"row_id": "outer", "prompt": "badly"},
    {"row_id": "no prompt", "prompt": None, "negative_prompt": "bad"},
]


@pytest.mark.parametrize(
    "prompt",
    [
        "a <cat>, <CAT> or <Cat >",
        "cats <cat>s x<cat>x",
        "badly made",
        "bad badly",
        "bad<|endoftext|>ly",
        "É1 and e\u03011 and É 1",
        "Œil œil",
        "< cat>",
        "",
    ],
)
def test_rows_have_the_tokens_that_the_tokenizer_finds(prompt: str) -> None:
    tokens = ["<cat>", "bad", "badly", "é1", "Œil"]
    tokenizer = small_components.tokenizer()
    tokenizer.add_tokens(tokens)

    numbers = tokenizer(prompt).input_ids

    assert learned_tokens_in([None, prompt], tokens) == [
        token for token in tokens if tokenizer.convert_tokens_to_ids(token) in numbers
    ]


@pytest.mark.parametrize(
    "prompt", ["a <cat> and <CAT>s, <cat>, bad", "<cat>_1 <cat>", "badly <catty>", "bad"]
)
def test_prompts_are_spelt_out_as_diffusers_does_it(prompt: str) -> None:
    """With all of twelve vectors, and only where the token is written as it was learned."""
    tokenizer = small_components.tokenizer()
    tokenizer.add_tokens(["<cat>", *(f"<cat>_{number}" for number in range(1, 12)), "bad", "bad_1"])

    expected = TextualInversionLoaderMixin().maybe_convert_prompt(prompt, tokenizer)

    assert with_all_vectors(tokenizer, prompt) == expected
    assert expected != prompt


@pytest.fixture
def tokens(tmp_path: Path) -> dict[str, str]:
    """Files of tokens for demo:sd."""
    nums = {"<cat>": 1, "bad": 3, "badly": 1}
    folder = tmp_path / "tokens"
    folder.mkdir()
    return {
        token: str(save_embedding(folder / f"{seed}.safetensors", seed=seed, num_vectors=num))
        for seed, (token, num) in enumerate(nums.items())
    }


def spec_of(folder: Path, tokens: dict[str, Any], rows: Sequence[Record] = ROWS) -> JobSpec:
    demo("sd")
    path = write_rows(folder / "rows.parquet", rows)
    models = {
        "sd": {"checkpoint": "demo:sd", "embeddings": tokens},
        "bare": {"checkpoint": "demo:sd"},
    }
    return job_spec(path, folder / "out", models=models, routes=ROUTES)


def test_a_plan_counts_the_rows_that_have_each_token(tmp_path: Path, tokens: dict[str, str]) -> None:
    """In any text, and in any step whose model has it; not those that are refused."""
    console = Console(file=io.StringIO(), width=300)

    plan, findings = make_plan(make_survey(spec_of(tmp_path, tokens)))
    print_plan(plan, findings, console)

    counts = {name: num for (kind, _, name), num in findings.adapter_rows.items() if kind == "embedding"}
    assert counts == {"<cat>": 3, "bad": 1, "badly": 1}
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    size = Path(tokens["<cat>"]).stat().st_size
    assert f"embedding <cat> of sd: {size} bytes, 3 rows" in printed
    problems = {bad.row_id: str(bad.problem) for bad in findings.bad_rows}
    assert problems.keys() == {"unread", "inner-later", "inner", "no prompt"}
    assert problems["unread"] == (
        "invalid_prompt: the text has the learned token bad, and diffusers' pipeline for safe reads none; "
        "leave it out for this row"
    )
    assert problems["inner-later"].startswith("invalid_prompt: step 2 (img2img): the text has the learned to")
    assert problems["inner"].startswith("invalid_prompt: the text has the learned tokens bad and badly, and")
    assert problems["no prompt"].startswith("missing_prompt")


def test_the_output_has_the_tokens_of_each_row_with_the_hashes_of_their_files(
    tmp_path: Path, tokens: dict[str, str]
) -> None:
    """Null where the row's model or task has no tokens, and in rows that were refused."""
    made = make(spec_of(tmp_path, tokens), NoiseEngine(0.0))

    learned = made.plan.job.models["sd"].embeddings
    names = {
        row["row_id"]: row["embeddings"] and [each["name"] for each in row["embeddings"]] for row in made.rows
    }
    assert names == {
        "none": [],
        "one": ["<cat>"],
        "both": ["<cat>", "bad"],
        "bare": None,
        "chain": None,
        "safe": None,
        "unread": None,
        "inner-later": None,
        "inner": None,
        "outer": ["badly"],
        "no prompt": None,
    }
    (both,) = (row["embeddings"] for row in made.rows if row["row_id"] == "both")
    assert both[1] == {"name": "bad", "sha256": learned["bad"].sha256}
    assert text(both) == "<cat>, bad"


def test_an_output_has_no_column_of_tokens_if_no_model_has_any(tmp_path: Path) -> None:
    made = make(spec_of(tmp_path, {}, ROWS[:1]), NoiseEngine(0.0))

    assert "embeddings" not in made.rows[0]
    assert "embeddings" not in str(made.plan.job.identity())


def test_a_job_goes_on_with_the_files_and_the_order_of_its_tokens(
    tmp_path: Path, tokens: dict[str, str]
) -> None:
    """Tokens get their numbers in this order, and XL's pooled embedding may depend on them."""
    spec = spec_of(tmp_path, tokens)
    plan, findings = make_plan(make_survey(spec))
    record = claim(open_output(spec.output.path), plan, findings)
    assert plan_of(record, survey_of(spec, record), "out").job.fingerprint == record.fingerprint

    turned = spec_of(tmp_path, dict(reversed(tokens.items())))
    with pytest.raises(RefusedError, match=r"models\.sd\.embeddings: was \[\["):
        plan_of(record, survey_of(turned, record), "out")
    save_embedding(Path(tokens["bad"]), seed=9, num_vectors=3)
    with pytest.raises(RefusedError, match=r"models\.sd\.embeddings\.bad: was \"[0-9a-f]{64}\", is now \""):
        plan_of(record, survey_of(spec, record), "out")
