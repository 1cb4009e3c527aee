"""Jobs on a real S3 server: their environment, their input and their output."""

import io
import os
from pathlib import Path
from unittest.mock import patch

from rich.console import Console

from actors.storage.objects import Storage
from jobs.verification.verify import verify_output
from tests.support.running import Record, row_ids, write_rows
from tests.support.s3.s3_server import S3Server

ISOLATION = {
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1",
}
"""Environment variables that hide the machine's own AWS settings from a program."""


def env_of(server: S3Server) -> dict[str, str]:
    """The environment of a program that uses this server and sees no other AWS settings."""
    return ISOLATION | server.env


def upload(store: Storage, uri: str, rows: list[Record], folder: Path) -> str:
    """Upload a Parquet file of the rows, which is also written to `folder`, and return its URI."""
    store.create(uri, write_rows(folder / "rows.parquet", rows).read_bytes(), {})
    return uri


def download(store: Storage, output: str, folder: Path) -> Path:
    """Copy the parts of an output to `folder`, and return the folder."""
    (folder / "data").mkdir(parents=True)
    for stored in store.list(f"{output}/data"):
        (folder / "data" / stored.uri.rpartition("/")[2]).write_bytes(store.read(stored.uri))
    return folder


def assert_whole_on_s3(
    store: Storage, output: str, rows: list[Record], folder: Path, env: dict[str, str]
) -> None:
    """Check that every row has one outcome and that `verify` accepts the output."""
    with patch.dict(os.environ, env):
        verify_output(output, Console(file=io.StringIO()))
    assert row_ids(download(store, output, folder / "downloaded")) == [row["row_id"] for row in rows]
