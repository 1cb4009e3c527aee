"""Facts about inputs on the Hugging Face Hub: read once, at one commit."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from actors.images.image_uris import UriJudge
from actors.storage.output import open_output
from jobs.intake.hub_files import parse_hub_path
from jobs.output.job_record import read_record
from jobs.survey.survey import make_survey
from schemas.errors import SpecError
from schemas.spec.job_spec import JobSpec
from tests.support.fake_hub import commit_of, serve_hub
from tests.support.in_process import job_spec, printed_by_verify
from tests.support.running import output_rows
from tests.support.simulation.in_process_driver import InProcessDriver

UseHub = Callable[[str], None]


def spec_of(path: str, output: Path) -> JobSpec:
    return job_spec(Path("none"), output, input={"path": path}, batching={"shard_rows": 2})


def data_set(folder: Path, first: int = 0) -> Path:
    """A data set of a table of seven rows, Parquet files in folders, and what no row comes from."""
    (folder / "parquet").mkdir(parents=True)
    rows = "".join(f"owl {number},{number}\n" for number in range(first, first + 7))
    (folder / "rows.csv").write_text(f"prompt,seed\n{rows}")
    for number in range(2):
        table = pa.table({"prompt": [f"fox {first + number}"], "seed": [first + number]})
        pq.write_table(table, folder / "parquet" / f"{number}.parquet")
    (folder / ".gitattributes").write_text("*.parquet filter=lfs")
    (folder / "README.md").write_text("# Owls")
    return folder


def seeds(output: Path) -> list[int]:
    return sorted(row["seed"] for row in output_rows(output))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("rows.csv", [*range(7)]),
        ("parquet", [0, 1]),
        ("*.csv", [*range(7)]),
        ("**/*.parquet", [0, 1]),
        ("", [0, 1]),
    ],
)
def test_a_path_on_the_hub_is_a_file_a_folder_or_a_pattern(
    tmp_path: Path, use_hub: UseHub, path: str, expected: list[int]
) -> None:
    """As anywhere else. Files of both kinds are read once, into the output."""
    folder = data_set(tmp_path / "set")
    with serve_hub({"org/owls": folder}, lambda number: 503 if number == 3 else 0) as (address, _):
        use_hub(address)
        driver = InProcessDriver(spec_of(f"hf://datasets/org/owls/{path}", tmp_path / "out"))
        driver.run()

    assert seeds(tmp_path / "out") == expected
    assert "copied as Parquet: " in driver.printed
    assert "verified" in printed_by_verify(driver.spec)  # without the Hub


def test_a_job_stays_at_the_commit_with_which_it_began(tmp_path: Path, use_hub: UseHub) -> None:
    """The record names it. The branch may move on, and the spec may name the commit, too."""
    commits = [data_set(tmp_path / "first"), data_set(tmp_path / "second", first=100)]
    path, output = "hf://datasets/org/owls@main/rows.csv", tmp_path / "out"
    with serve_hub({"org/owls": commits[:1]}) as (address, _):
        use_hub(address)
        InProcessDriver(spec_of(path, output)).run()
    (output / "data" / "train-00001-of-00004.parquet").unlink()

    with serve_hub({"org/owls": commits}) as (address, asked):
        use_hub(address)
        InProcessDriver(spec_of(path, output)).run()
        read_again = [request for request in asked if "/resolve/" in request]
        InProcessDriver(spec_of(path.replace("main", commit_of(commits[0])), output)).run()

    record = read_record(open_output(str(output)))
    assert record is not None
    assert [file.uri for file in record.files] == [path.replace("main", commit_of(commits[0]))]
    assert read_again == []
    assert seeds(output) == [*range(7)]


def test_a_row_of_the_hub_names_no_image_of_this_machine(tmp_path: Path, use_hub: UseHub) -> None:
    """Neither by a relative path nor by an absolute one."""
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "rows.csv").write_text("task,prompt,image\nimg2img,x,owl.png\nimg2img,x,/etc/hostname\n")
    with serve_hub({"org/owls": folder}) as (address, _):
        use_hub(address)
        spec = spec_of("hf://datasets/org/owls/rows.csv", tmp_path / "out")
        driver = InProcessDriver(
            spec.model_copy(update={"errors": spec.errors.model_copy(update={"max_rate": 1.0})})
        )
        driver.run()

    assert {row["error_code"] for row in output_rows(tmp_path / "out")} == {"disallowed_uri"}


def test_no_folder_of_this_machine_is_that_of_a_file_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even one below the working directory whose path reads like that of the data set."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "hf:" / "datasets" / "org" / "owls"
    folder.mkdir(parents=True)
    (folder / "owl.png").touch()

    problem = UriJudge("hf://datasets/org/owls/rows.csv", []).problem(str(folder / "owl.png"))

    assert problem is not None
    assert problem.code == "disallowed_uri"


@pytest.mark.parametrize(
    ("path", "repository", "revision", "file"),
    [
        ("hf://datasets/o/n", "o/n", "main", ""),
        ("hf://datasets/o/n/a/b.csv", "o/n", "main", "a/b.csv"),
        ("hf://datasets/o/n@v1.0/a", "o/n", "v1.0", "a"),
        (
            "hf://datasets/o/n@refs%2Fconvert%2Fparquet/a/*.parquet",
            "o/n",
            "refs/convert/parquet",
            "a/*.parquet",
        ),
        ("hf://datasets/o/n@refs/pr/7/a", "o/n", "refs/pr/7", "a"),
    ],
)
def test_a_path_has_a_repository_a_revision_and_a_file(
    path: str, repository: str, revision: str, file: str
) -> None:
    """The branch is `main` if none is named, and slashes of a revision may be written out."""
    parsed = parse_hub_path(path)

    assert (parsed.repository, parsed.revision, parsed.file) == (repository, revision, file)
    assert parse_hub_path(str(parsed)) == parsed


@pytest.mark.parametrize(
    "path",
    [
        "hf://org/model/rows.csv",
        "hf://datasets/org",
        "hf://datasets/org/owls/../../x",
        "hf://user:secret@datasets/org/owls/x",
        "hf://datasets/org/owls/x.csv?token=abc",
        "hf://datasets/org/owls/simplecache::x",
    ],
)
def test_another_path_is_refused(tmp_path: Path, path: str) -> None:
    """Before the Hub is asked."""
    with pytest.raises(SpecError, match="the form on the Hub is hf://datasets/ORGANISATION/NAME"):
        make_survey(spec_of(path, tmp_path / "out"))


def test_what_the_hub_does_not_have_is_named(tmp_path: Path, use_hub: UseHub) -> None:
    """A data set, a revision or a file; a private data set looks like none."""
    with serve_hub({"org/owls": data_set(tmp_path / "set")}) as (address, _):
        use_hub(address)
        with pytest.raises(SpecError, match=r"org/foxes@main/x cannot be read from the Hub: .*HF_TOKEN"):
            make_survey(spec_of("hf://datasets/org/foxes/x", tmp_path / "out"))
        with pytest.raises(SpecError, match=r"owls@0{40}/rows.csv cannot be read from the Hub"):
            make_survey(spec_of(f"hf://datasets/org/owls@{'0' * 40}/rows.csv", tmp_path / "out"))
        with pytest.raises(SpecError, match="there is no file with rows at hf://datasets/org/owls@"):
            make_survey(spec_of("hf://datasets/org/owls/none.csv", tmp_path / "out"))


def test_a_hub_that_may_not_be_asked_is_said_to_be_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is wrong with the name then, so no other is advised."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    with pytest.raises(SpecError, match=r"HF_HUB_OFFLINE is set\. Unset it, or download") as no:
        make_survey(spec_of("hf://datasets/org/owls/rows.csv", tmp_path / "out"))

    assert "Check its name" not in str(no.value)
