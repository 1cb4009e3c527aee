"""Facts about secrets: what the environment holds to reach a store or the Hub is written nowhere."""

import io
import logging
import pickle
from pathlib import Path

import pytest
from rich.console import Console

from actors.storage.output import Output
from actors.storage.stores import open_storage
from jobs.output.job_record import claim
from jobs.output.lease import Lease
from jobs.output.tally import Tally
from jobs.planning.plan import make_plan
from jobs.planning.plan_text import print_plan
from jobs.reports.finish import finish
from jobs.survey.survey import make_survey
from schemas.spec.spec_file import load_spec
from tests.support.canaries import CANARIES, leaks
from tests.support.in_process import Record, drawn_image, job_spec, make, write_rows
from tests.support.running import write_spec
from tests.support.s3.s3_server import SECRET_KEY, S3Server

ROWS: list[Record] = [
    {"row_id": "made", "prompt": "a fox"},
    {"row_id": "failed", "prompt": None},
    {"row_id": "painted", "prompt": "x", "task": "img2img", "image": drawn_image()},
]


@pytest.fixture(autouse=True)
def canaries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets in the environment."""
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)


def test_a_job_writes_no_secret_anywhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not into parts, records, reports or logs, nor into what goes to the workers."""
    caplog.set_level(logging.DEBUG)
    spec = job_spec(write_rows(tmp_path / "in.parquet", ROWS), tmp_path / "out")
    output, storage, printed = spec.output.path, open_storage(spec.output.path), io.StringIO()
    plan, findings = make_plan(make_survey(spec))
    print_plan(plan, findings, Console(file=printed))
    record = claim(Output(storage, output), plan, findings)
    with Lease(Output(storage, output)) as lease:
        made = make(spec)
        tally = Tally(rows_total=plan.num_rows, rows_before=0)
        for report in made.reports:
            tally.add(report)
        lease.confirm(tally)
        finish(Output(storage, output), record, tally.figures())

    written = {str(path): path.read_bytes() for path in Path(output).rglob("*") if path.is_file()}
    rows = {"rows": repr(made.rows).encode()}
    sent = {
        "job": pickle.dumps(plan.job),
        "shards": pickle.dumps([*plan.shards()]),
        "spec": spec.model_dump_json().encode(),
        "reports": pickle.dumps(made.reports),
    }
    said = {
        "log": caplog.text.encode(),
        "printed": (printed.getvalue() + "".join(capfd.readouterr())).encode(),
    }
    assert {Path(path).name for path in written} >= {"job.json", "summary.json", "driver.json", "README.md"}
    assert caplog.text
    assert leaks(written | rows | sent | said) == []


def test_a_planted_secret_would_be_found(tmp_path: Path) -> None:
    """The search itself works: in a prompt, which is recorded, it is seen."""
    spec = job_spec(
        write_rows(tmp_path / "in.parquet", [{"row_id": "a", "prompt": CANARIES["HF_TOKEN"]}]),
        tmp_path / "out",
    )

    made = make(spec)

    assert leaks({"rows": repr(made.rows).encode(), "part": made.parts[0]}) == ["rows", "part"]


def test_the_environment_is_not_read_into_a_spec(tmp_path: Path) -> None:
    """`$NAME` in a YAML is the text it is."""
    path = write_spec(tmp_path / "job.yaml", "rows/$AWS_SECRET_ACCESS_KEY", "out/${HF_TOKEN}")

    spec = load_spec(path)

    assert spec.output.path == "out/${HF_TOKEN}"
    assert leaks({"spec": spec.model_dump_json().encode()}) == []


def test_a_storage_in_use_does_not_hold_the_secret(s3_env: S3Server, s3_folder: str) -> None:
    """Should one ever be pickled by mistake: the SDK's session has it, and does not travel."""
    storage = open_storage(s3_folder)
    storage.create(f"{s3_folder}/a", b"x", {})

    sent = pickle.dumps(storage)

    assert SECRET_KEY.encode() not in sent
