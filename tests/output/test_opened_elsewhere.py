"""Outputs are opened by other libraries as what they are: the same rows, images and types."""

import io
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from actors.engine.engine import Generated
from actors.rows.opened_rows import OpenedRow
from actors.storage.output import open_output
from jobs.output.job_record import claim
from jobs.output.tally import Tally
from jobs.planning.plan import make_plan
from jobs.reports.finish import finish
from jobs.survey.survey import make_survey
from schemas.columns.output_columns import IMAGE_TYPE
from tests.support import dataset_rows
from tests.support.engines import GreyEngine
from tests.support.in_process import drawn_image, job_spec, make
from tests.support.running import clean_env, output_rows

PYTHONS = [sys.executable, *filter(None, os.environ.get("DATASETS_PYTHONS", "").split(":"))]
"""Interpreters that have `datasets`, each in another release: `make datasets` names old ones."""
MODELS = {kind: {"checkpoint": f"demo:{kind}"} for kind in ("sd", "ldm3d")}
ROUTES = {
    "text2img": {"model": "sd"},
    "ldm3d": {"model": "ldm3d"},
    "img2img": {"model": "sd"},
    "twice": {"task": "text2img", "model": "sd", "then": ["img2img"], "keep_steps": True},
}
TASKS = ("text2img", "ldm3d", "twice", None, "ldm3d")
NUM_ROWS = len(TASKS)
IMAGES = pa.list_(IMAGE_TYPE)
KEPT: dict[str, pa.Array] = {
    "photo": pa.array([drawn_image((9 + i, 8)) if i % 2 else None for i in range(NUM_ROWS)], IMAGE_TYPE),
    "photos": pa.array([None, [], [drawn_image((7, 8))], [drawn_image(), None], None], IMAGES),
    "uuid": pa.array([uuid.UUID(int=i).bytes for i in range(NUM_ROWS)], pa.uuid()),
    "json": pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a": 1}'] * NUM_ROWS)),
    "tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(np.ones((NUM_ROWS, 2, 2), np.float32)),
    "dictionary": pa.array(["x", "y", None, "x", "y"]).dictionary_encode(),
    "view": pa.array(["x", None, "y", "", "z"], pa.string_view()),
    "texts": pa.array([["a"], [], None, ["b", None], []], pa.large_list(pa.large_string())),
    "nested": pa.array([{"a": 1, "b": [{"c": "d"}]}, None] + [{"a": None, "b": []}] * 3),
    "small": pa.array([0, 255, None, 1, 2], pa.uint8()),
    "nothing": pa.nulls(NUM_ROWS),
}


class EveryColumn(GreyEngine):
    """Makes images of noise, with a depth map and the image of an earlier step where the output has them."""

    def generate(self, rows: Sequence[OpenedRow], decoders: Executor) -> Iterator[Generated]:
        for number, generated in enumerate(super().generate(rows, decoders)):
            route = generated.sample.opened.row.route
            noise = np.random.default_rng(number)
            pixels = noise.integers(0, 256, (8, 16, 3), np.uint8)
            steps = (pixels[::-1],) if route.keep_steps else ()
            depth = noise.integers(0, 1 << 16, (8, 16), np.uint16) if route.system.gives_depth else None
            sample = replace(generated.sample, step_images=steps)
            yield replace(generated, sample=sample, pixels=pixels, depth=depth)


@pytest.fixture(scope="module", params=["parquet", "files"])
def output(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished job's output with every kind of column, whose images are in its parts or are files."""
    folder = tmp_path_factory.mktemp("opened")
    prompts = ["a", "b", "c", None, "d"]
    columns = {"row_id": range(NUM_ROWS), "task": TASKS, "prompt": prompts, **KEPT}
    pq.write_table(pa.table(columns), folder / "rows.parquet")
    spec = job_spec(
        folder / "rows.parquet",
        folder / "out",
        input={"path": str(folder / "rows.parquet"), "keep": [*KEPT]},
        models=MODELS,
        routes=ROUTES,
        output={"path": str(folder / "out"), "images": request.param},
        batching={"shard_rows": 2},
    )
    stored = open_output(spec.output.path)
    record = claim(stored, *make_plan(make_survey(spec)))
    make(spec, EveryColumn())
    finish(stored, record, Tally(rows_total=NUM_ROWS, rows_before=0).figures())
    return folder / "out"


def decoded(value: Any, output: Path) -> Any:
    """The value of a part, with an open image in place of each image's bytes or path."""
    if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
        return Image.open(io.BytesIO(value["bytes"]) if value["bytes"] else output / value["path"])
    if isinstance(value, list):
        return [decoded(inner, output) for inner in value]
    return value


def in_order(rows: Sequence[Any]) -> list[Any]:
    return sorted(rows, key=lambda row: int(row["row_id"]))


@pytest.mark.parametrize("python", PYTHONS)
def test_hugging_face_opens_an_output_by_its_folder_alone(output: Path, python: str) -> None:
    """As by the names of its parts, streamed or not: the same rows, and every image as an image."""
    expected = in_order(
        [
            {name: dataset_rows.plain(decoded(value, output)) for name, value in row.items()}
            for row in output_rows(output)
        ]
    )
    assert [row["status"] for row in expected] == ["ok", "ok", "ok", "failed", "ok"]
    assert expected[4]["depth"][:4] == ["image", "I;16", 16, 8]
    assert expected[2]["step_images"][0][:4] == ["image", "RGB", 16, 8]

    ran = subprocess.run(
        [python, "-P", dataset_rows.__file__, str(output)],
        # The paths of images that are files begin there.
        cwd=output,
        # datasets needs pandas, which programs under test are run without.
        env=clean_env(python, HF_DATASETS_OFFLINE="1", PYTHONPATH=os.environ.get("PYTHONPATH", "")),
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr
    opened = json.loads(ran.stdout)
    assert opened.keys() == {*dataset_rows.WAYS}
    for way, rows in opened.items():
        assert in_order(rows) == expected, way


def test_pandas_opens_an_output_by_its_folder(output: Path) -> None:
    """Images are dictionaries of bytes and path."""
    expected = {row["row_id"]: row for row in output_rows(output)}

    frame = pd.read_parquet(output / "data")

    assert [*frame.columns] == [*expected[0]]
    for row in frame.to_dict("records"):
        of_part = expected[row["row_id"]]
        assert [row[name] for name in ("image", "photo")] == [of_part[name] for name in ("image", "photo")]
        assert [*(row["photos"] if row["photos"] is not None else [])] == (of_part["photos"] or [])
