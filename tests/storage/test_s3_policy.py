"""Facts about least privilege: a job runs with rights to read its input and to write its output."""

import io
import json
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from actors.parts.commit import probe
from actors.storage.output import Output
from actors.storage.stores import open_storage
from jobs.output.job_record import claim
from jobs.output.tally import Tally
from jobs.planning.plan import make_plan
from jobs.reports.finish import finish
from jobs.reports.status import print_status
from jobs.survey.survey import make_survey
from schemas.errors import StorageError
from tests.support.engines import GreyEngine
from tests.support.in_process import Record, job_spec, worker_for, write_rows
from tests.support.s3.s3_server import S3Server, skip_without_server

SECRET = "also-not-a-secret"
ACTIONS = {
    "driver": ["Read:inp", "List:inp", "Read:out", "List:out", "Write:out"],
    "worker": ["Read:inp", "Read:out", "Write:out"],
    "reader": ["Read:out", "List:out"],
}


class ServerWithRoles(S3Server):
    """Knows the three identities beside its administrator."""

    def _command(self, ports: list[int]) -> list[str]:
        command = super()._command(ports)
        path = self._folder / "s3.json"
        config = json.loads(path.read_text())
        config["identities"] += [
            {"name": role, "credentials": [{"accessKey": role, "secretKey": SECRET}], "actions": actions}
            for role, actions in ACTIONS.items()
        ]
        path.write_text(json.dumps(config))
        return command


@pytest.fixture(scope="module")
def server() -> Iterator[ServerWithRoles]:
    """One for these tests alone."""
    skip_without_server()
    started = ServerWithRoles()
    with started:
        yield started


@pytest.fixture
def become(server: ServerWithRoles, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes the environment a role's; storages opened from then on are its."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)

    def change(role: str) -> None:
        secret = {"AWS_ACCESS_KEY_ID": role, "AWS_SECRET_ACCESS_KEY": SECRET} if role in ACTIONS else {}
        for name, value in (server.env | secret).items():
            monkeypatch.setenv(name, value)

    return change


def test_a_job_needs_no_more_than_its_roles_allow(tmp_path: Path, become: Callable[[str], None]) -> None:
    """The driver lists and deletes its probe, the worker gets and puts, a reader reads."""
    name = uuid.uuid4().hex
    rows: list[Record] = [{"row_id": "a", "prompt": "a fox"}, {"row_id": "b", "prompt": "an owl"}]
    become("administrator")
    data = write_rows(tmp_path / "in.parquet", rows).read_bytes()
    open_storage("s3://inp").create(f"s3://inp/{name}/in.parquet", data, {})
    spec = job_spec(
        tmp_path, tmp_path, input={"path": f"s3://inp/{name}"}, output={"path": f"s3://out/{name}"}
    )

    become("driver")
    driver = open_storage(spec.output.path, deadline_s=20)
    plan, findings = make_plan(make_survey(spec))
    probe(Output(driver, spec.output.path))
    record = claim(Output(driver, spec.output.path), plan, findings)
    become("worker")
    with worker_for(plan, GreyEngine()) as worker:
        reports = [worker.run(shard) for shard in plan.shards()]
    tally = Tally(rows_total=plan.num_rows, rows_before=0)
    totals = finish(Output(driver, spec.output.path), record, tally.figures())
    become("reader")
    verified = io.StringIO()
    print_status(spec.output.path, Console(file=verified, width=200))

    assert [report.committed for report in reports] == [True]
    assert totals.ok == 2
    assert "2 rows ok" in verified.getvalue()


@pytest.mark.parametrize(
    ("role", "uri"), [("driver", "s3://inp/x"), ("worker", "s3://inp/x"), ("reader", "s3://out/x")]
)
def test_the_roles_may_write_nowhere_else(role: str, uri: str, become: Callable[[str], None]) -> None:
    """They are as small as they look: the store refuses, and darkroom says so at once."""
    become(role)

    with pytest.raises(StorageError, match="may list, read and write here"):
        open_storage(uri, deadline_s=20).create(uri, b"x", {})
