"""Facts about the job as the driver and its workers know it: when two jobs are one, and what comes back."""

import pickle
from typing import Any

import pyarrow as pa
import pytest

from schemas.columns.input_columns import ColumnMap
from schemas.errors import RowError
from schemas.job import FailedRows, Job, merge_failed_rows
from schemas.spec.job_spec import JobSpec
from tests.support.checkpoints import model_card

SPEC: dict[str, Any] = {
    "version": 1,
    "name": "one",
    "input": {"path": "rows", "keep": ["note"]},
    "models": {"sd": {"checkpoint": "a/b"}, "xl": {"checkpoint": "c/d", "revision": "main"}},
    "routes": {"text2img": {"model": "sd", "eta": 0.5}, "img2img": {"model": "xl"}},
    "default_route": "text2img",
    "output": {"path": "out"},
}
CHANGES: dict[str, Any] = {
    "input": {"path": "rows", "keep": ["more"]},
    "models": {"sd": {"checkpoint": "a/b", "dtype": "float16"}, "xl": SPEC["models"]["xl"]},
    "routes": {"text2img": {"model": "sd", "eta": 0.25}, "img2img": {"model": "xl"}},
    "default_route": "img2img",
    "output": {"path": "out", "format": "webp"},
    "seed": 1,
    "long_prompts": "chunk",
    "prompt_weights": "compel",
    "safety": {"flagged": "black"},
    "batching": {"shard_rows": 255},
    "kernels": {"fuse_qkv": True},
}
"""For each section that decides about the output, another value."""
OF_NO_ACCOUNT: dict[str, Any] = {
    "name": "another",
    "output": {"path": "elsewhere"},
    "workers": {"num": 7, "notice_s": 1},
    "errors": {"max_rate": 0.5, "max_attempts": 9},
    "input": {"path": "others", "keep": ["note"], "hash": "ends", "pictures": ["/pictures"]},
}


def job(columns: dict[str, str] | None = None, revision: str = "r2", **sections: Any) -> Job:
    """A job of two models, the second of which has this revision."""
    return Job(
        spec=JobSpec.model_validate(SPEC | sections),
        models={
            "sd": model_card(checkpoint="/folders/a", revision="r1"),
            "xl": model_card(checkpoint="c/d", revision=revision),
        },
        columns=ColumnMap(
            fields=columns or {"prompt": "text", "negative_prompt": "not"},
            recognised={},
            keep={"note": pa.string()},
            id_type=pa.string(),
        ),
        schema=b"",
    )


@pytest.mark.parametrize("section", CHANGES)
def test_a_job_is_another_one_if_what_it_makes_may_differ(section: str) -> None:
    """Each section of the spec counts, so that no output mixes the parts of two jobs."""
    changed = job(**{section: CHANGES[section]})

    assert changed.fingerprint != job().fingerprint


def test_every_section_of_a_spec_counts_or_is_known_not_to() -> None:
    """A section that is added to the spec must be added here."""
    assert {*CHANGES, *OF_NO_ACCOUNT, "version"} == {*JobSpec.model_fields}


def test_a_job_is_another_one_if_a_checkpoint_or_a_column_is() -> None:
    """A branch may point to another commit, and two columns may change their places."""
    fingerprints = {
        job().fingerprint,
        job(revision="r3").fingerprint,
        job({"prompt": "text", "negative_prompt": "other"}).fingerprint,
        job({"prompt": "not", "negative_prompt": "text"}).fingerprint,
        job({"prompt": "text"}).fingerprint,
    }

    assert len(fingerprints) == 5


@pytest.mark.parametrize("section", OF_NO_ACCOUNT)
def test_a_job_may_go_on_in_another_place_with_other_workers(section: str) -> None:
    """What decides about no image is not counted, and neither is the order of keys."""
    changed = job(**{section: OF_NO_ACCOUNT[section]})
    reordered = job(
        {"negative_prompt": "not", "prompt": "text"},
        models=dict(reversed(SPEC["models"].items())),
        routes=dict(reversed(SPEC["routes"].items())),
    )

    assert changed.fingerprint == reordered.fingerprint == job().fingerprint


def test_workers_load_what_the_driver_resolved() -> None:
    """A branch that moves during the job changes no image; precision and variant are the spec's."""
    models = {"sd": SPEC["models"]["sd"] | {"dtype": "float16"}, "xl": SPEC["models"]["xl"]}

    resolved = job(models=models).checkpoints

    assert {name: (model.checkpoint, model.revision, model.dtype) for name, model in resolved.items()} == {
        "sd": ("/folders/a", "r1", "float16"),
        "xl": ("c/d", "r2", "auto"),
    }


def test_failed_rows_are_added_up_and_keep_the_first_message() -> None:
    """Over any number of shards, each code by itself."""
    first = {"a": FailedRows(num_rows=2, message="first"), "b": FailedRows(num_rows=7, message="b")}
    second = {"a": FailedRows(num_rows=3, message="second"), "c": FailedRows(num_rows=1, message="c")}

    merged = merge_failed_rows([first, second, {"a": FailedRows(num_rows=4, message="third")}])

    assert merged == {
        "a": FailedRows(num_rows=9, message="first"),
        "b": first["b"],
        "c": second["c"],
    }


def test_a_rows_error_comes_back_from_a_worker_as_it_was() -> None:
    """Its code decides what is recorded."""
    error: RowError = pickle.loads(pickle.dumps(RowError("invalid_size", "height is 7")))

    assert (error.code, error.message, str(error)) == (
        "invalid_size",
        "height is 7",
        "invalid_size: height is 7",
    )
