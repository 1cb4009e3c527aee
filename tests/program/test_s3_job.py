"""A whole job whose input and output are on a real S3 server."""

import io
from pathlib import Path

import pytest
from PIL import Image

from actors.storage.objects import Storage
from actors.storage.s3 import S3Storage
from jobs.reports.run_result import RunResult
from schemas.spec.spec_file import load_spec
from tests.support.running import Record, darkroom_here, row_ids, text_rows, write_spec
from tests.support.s3.on_s3 import download, upload
from tests.support.simulation.in_process_driver import InProcessDriver


@pytest.fixture(scope="module")
def mixed_input(store: Storage, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Rows of words, and rows whose image is an object beside the input, named in both ways."""
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").resize((64, 64)).save(file, "PNG")
    store.create("s3://inp/mixed/pictures/gradient.png", file.getvalue(), {})
    uris = ("s3://inp/mixed/pictures/gradient.png", "pictures/gradient.png")
    rows: list[Record] = text_rows(12)
    for row, uri in zip(rows, uris * 3, strict=False):
        row |= {"task": "img2img", "image": uri}
    return upload(store, "s3://inp/mixed/rows.parquet", rows, tmp_path_factory.mktemp("mixed"))


@pytest.fixture(scope="module")
def on_s3(store: Storage, mixed_input: str, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A job from S3 to s3://out/mixed, where uploads of a killed writer and of somebody else stay."""
    assert isinstance(store, S3Storage)
    store._call("create_multipart_upload", "s3://out", {"Bucket": "out", "Key": "mixed/data/part"})
    store._call("create_multipart_upload", "s3://out", {"Bucket": "out", "Key": "mixed/other/file"})
    spec = write_spec(
        tmp_path_factory.mktemp("spec") / "job.yaml", mixed_input, "s3://out/mixed", workers={"num": 1}
    )
    return InProcessDriver(load_spec(spec), num_workers=1).run()


def test_a_job_reads_its_rows_and_images_from_s3_and_writes_there(
    on_s3: RunResult, store: Storage, s3_only: dict[str, str], tmp_path: Path
) -> None:
    """Every row once, all of them ok, and `verify` and `status` read the output where it is."""
    assert (on_s3.totals.rows, on_s3.totals.ok) == (12, 12)
    assert row_ids(download(store, "s3://out/mixed", tmp_path)) == [row["row_id"] for row in text_rows(12)]

    assert isinstance(store, S3Storage)
    uploads = store._call("list_multipart_uploads", "s3://out", {"Bucket": "out", "Prefix": "mixed/"})
    assert [upload["Key"] for upload in uploads["Uploads"]] == ["mixed/other/file"]
    verified = darkroom_here("verify", "s3://out/mixed", **s3_only)
    status = darkroom_here("status", "s3://out/mixed", **s3_only)

    assert verified.code == 0, verified.err
    assert "test: 2 of 2 parts, 12 of 12 rows" in status.out
    assert {stored.uri.removeprefix("s3://out/mixed/") for stored in store.list("s3://out/mixed")} == {
        "_SUCCESS",
        "README.md",
        "contact-sheet.html",
        "_darkroom/driver.json",
        "_darkroom/job.json",
        "_darkroom/manifest.jsonl",
        "_darkroom/summary.json",
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
    }
