"""Whole jobs with input and output on a real S3 server, and through a network that breaks."""

import io
import re
from pathlib import Path

import pytest
from PIL import Image

from actors.storage.objects import Storage
from tests.support.running import (
    Finished,
    Record,
    Started,
    darkroom,
    output_rows,
    row_ids,
    text_rows,
    write_spec,
)
from tests.support.s3.fault_proxy import serve_fault_proxy
from tests.support.s3.on_s3 import download, upload

STOPPED_WITHIN_S = 120
"""Two tries of the lease at 10 s each, and a busy machine."""
FAULTY_REPLIES = ("503", "lost_reply", "reset", "409")


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


def relative_rows(downloaded: Path, output: object) -> list[Record]:
    """All rows of an output, with its images' places as they are below it."""
    rows = output_rows(downloaded)
    return [row | {"image": row["image"]["path"].removeprefix(str(output))} for row in rows]


@pytest.fixture(scope="module")
def on_s3(s3_only: dict[str, str], mixed_input: str, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A job from S3 to s3://out/mixed."""
    spec = write_spec(tmp_path_factory.mktemp("spec") / "job.yaml", mixed_input, "s3://out/mixed")
    return darkroom("run", spec, **s3_only)


def test_a_job_reads_its_rows_and_images_from_s3_and_writes_there(
    on_s3: Finished, store: Storage, s3_only: dict[str, str], tmp_path: Path
) -> None:
    """Every row once, all of them ok, and `verify` and `status` read the output where it is."""
    assert on_s3.code == 0, on_s3.err
    assert "total: 12 rows ok, 0 filtered, 0 failed" in on_s3.out
    assert row_ids(download(store, "s3://out/mixed", tmp_path)) == [row["row_id"] for row in text_rows(12)]

    verified = darkroom("verify", "s3://out/mixed", **s3_only)
    status = darkroom("status", "s3://out/mixed", **s3_only)

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


def test_a_job_survives_a_store_that_hangs_and_a_network_that_loses_replies(
    store: Storage, s3_only: dict[str, str], tmp_path: Path
) -> None:
    """Stopped while the store hangs, it ends all the same. Run again under 503, 409, resets and lost replies,
    on listings, reads, images and parts, it makes what was missing: each row once, one object an image,
    and all of it as an undisturbed run to a local disk makes it."""
    output, rows = "s3://out/faulty", text_rows(32)
    uri = upload(store, "s3://inp/faulty/rows.parquet", rows, tmp_path)
    shards = {"batching": {"shard_rows": 4}}
    files = {"output": {"path": output, "images": "files"}}
    local = {"output": {"path": str(tmp_path / "local"), "images": "files"}}
    spec = write_spec(tmp_path / "job.yaml", uri, output, **shards, **files)
    local_spec = write_spec(tmp_path / "local.yaml", uri, output, **shards, **local)

    with serve_fault_proxy(s3_only["AWS_ENDPOINT_URL"]) as proxy:
        through_proxy = s3_only | {"AWS_ENDPOINT_URL": proxy.url}
        with Started("-m", "tests.support.engines", "slow", spec, **through_proxy) as run:
            run.wait_until(lambda: proxy.count("PUT", "/data/train-") > 2)
            proxy.inject("hang", method="PUT", count=1000)
            hung = proxy.count("PUT")
            run.wait_until(lambda: proxy.count("PUT") > hung)
            run.press_ctrl_c()
            stopped = run.wait(STOPPED_WITHIN_S)
        proxy.faults.clear()
        for kind in FAULTY_REPLIES:
            proxy.inject(kind, method="PUT", key="/data/train-", count=2)
            proxy.inject(kind, method="PUT", key="/images/", count=2)
            proxy.inject(kind, method="GET", key="rows.parquet", count=1)
            proxy.inject(kind, method="GET", key="list-type", count=1)
        with Started("-m", "tests.support.engines", "quick", spec, **through_proxy) as run:
            resumed = run.wait()
        with Started("-m", "tests.support.engines", "quick", local_spec, **s3_only) as run:
            undisturbed = run.wait()
        left = [fault for fault in proxy.faults if fault.count]

    assert stopped.code == 130
    assert resumed.code == 0, resumed.err
    assert re.search(r"resuming: \d of 8 parts already saved, \d left to generate", resumed.out)
    assert not left
    there = download(store, output, tmp_path / "there")
    assert row_ids(there) == [row["row_id"] for row in rows]
    assert len(list(store.list(f"{output}/images"))) == len(rows)
    verified = darkroom("verify", output, **s3_only)
    assert verified.code == 0, verified.err
    assert undisturbed.code == 0, undisturbed.err
    assert relative_rows(there, output) == relative_rows(tmp_path / "local", tmp_path / "local")


def test_a_store_that_refuses_every_part_ends_the_job_with_exit_code_5(
    store: Storage, s3_only: dict[str, str], tmp_path: Path
) -> None:
    """After `errors.storage_deadline_s`, with the last answer and what to do."""
    uri = upload(store, "s3://inp/refused/rows.parquet", text_rows(8), tmp_path)
    spec = write_spec(
        tmp_path / "job.yaml", uri, "s3://out/refused", errors={"storage_deadline_s": 3}, workers={"num": 1}
    )

    with serve_fault_proxy(s3_only["AWS_ENDPOINT_URL"]) as proxy:
        proxy.inject("503", method="PUT", key="/data/train-", count=1000)
        environment = s3_only | {"AWS_ENDPOINT_URL": proxy.url}
        with Started("-m", "tests.support.engines", "quick", spec, **environment) as run:
            failed = run.wait()

    assert failed.code == 5
    assert "put_object did not succeed within 3 s; the last error: SlowDown (HTTP 503)" in failed.err
    assert "run again to resume" in failed.err
    assert not list(store.list("s3://out/refused/data"))
