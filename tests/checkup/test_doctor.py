"""Facts about `darkroom doctor`: what it finds on machines of all kinds, and what it says to do."""

import io
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from jobs.checkup.cluster_check import check_ray
from jobs.checkup.devices import check_devices
from jobs.checkup.doctor import Check, examine
from jobs.checkup.facts import NoFactsError, facts_of
from jobs.checkup.finding import Finding, Level, ok, problem, warning
from jobs.checkup.hub_check import check_hub, check_models
from jobs.checkup.resources import check_disks, check_memory
from jobs.checkup.store_check import check_store
from jobs.checkup.versions import check_versions
from schemas.errors import DarkroomError, SpecError
from schemas.spec.job_spec import JobSpec, ModelSpec
from schemas.systems.model_card import ModelCard
from tests.support.checkpoints import model_card
from tests.support.in_process import job_spec
from tests.support.running import Finished, darkroom

GPU = "NVIDIA L4, 550.54"
NO_GPU: Mapping[str, Any] = {"torch": "2.13.0", "cuda": None, "hip": None, "reason": "", "devices": []}
L4 = {"name": "NVIDIA L4", "memory_bytes": 24e9, "free_bytes": 23e9, "bfloat16": True, "fault": ""}
RAY: Mapping[str, Any] = {
    "version": "2.60.0",
    "is_own": True,
    "fault": "",
    "num_machines": 1,
    "num_cpus": 8,
    "num_gpus": 1,
    "can_grow": False,
}


def told(findings: Iterable[Finding]) -> list[tuple[Level, str]]:
    return [(finding.level, finding.text) for finding in findings]


def only(findings: Iterable[Finding], level: Level) -> str:
    """The text of the only finding of this level."""
    (text,) = [finding.text for finding in findings if finding.level is level]
    return text


def no_facts() -> Mapping[str, Any]:
    raise NoFactsError("ImportError: libcudart.so.13: cannot open shared object file")


@pytest.fixture(scope="module")
def examined(tmp_path_factory: pytest.TempPathFactory) -> tuple[Finished, Path, list[str]]:
    """(ended, folder, left): a real examination of a spec, and what is in the folders that it writes to."""
    folder = tmp_path_factory.mktemp("doctor")
    (folder / "spec.yaml").write_text(
        "version: 1\nname: a\ninput: {path: x.parquet}\nmodels: {sd: {checkpoint: 'demo:shapes'}}\n"
        "routes: {text2img: {model: sd}}\noutput: {path: out/a}\n"
    )
    before = {*os.listdir("/tmp")}
    ended = darkroom("doctor", "spec.yaml", cwd=folder, HF_HUB_OFFLINE="1", TMPDIR=str(folder))
    left = [name for name in {*os.listdir("/tmp")} - before if name.startswith("dr-")]
    return ended, folder, left


def test_a_machine_without_problems_ends_with_0(examined: tuple[Finished, Path, list[str]]) -> None:
    """torch is asked, Ray starts and ends, and the output's store is written to."""
    ended, _, _ = examined

    assert ended.code == 0, ended.out + ended.err
    subjects = ("versions", "memory", "disks", "devices", "Ray", "Hub", "output")
    assert all(any(f" {subject} " in line for line in ended.out.splitlines()) for subject in subjects)
    assert "starts on this machine" in ended.out
    assert "conditional writes" in ended.out


def test_an_examination_leaves_nothing_behind(examined: tuple[Finished, Path, list[str]]) -> None:
    """Neither folders of the output, nor those of Ray."""
    _, folder, left = examined

    assert os.listdir(folder) == ["spec.yaml"]
    assert left == []


def test_a_problem_ends_with_1_after_all_checks() -> None:
    """Each finding is a line with its way out."""
    console = Console(file=io.StringIO(), width=80)
    checks = [
        Check("one", lambda: [problem("the disk is full; free some")]),
        Check("two", lambda: [ok("fine"), warning("slow")]),
    ]

    with pytest.raises(DarkroomError, match="1 problem would prevent a run") as raised:
        examine(checks, console)

    assert raised.value.exit_code == 1
    assert console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "problem one       the disk is full; free some",
        "ok      two       fine",
        "warning two       slow",
    ]


def test_a_check_that_hangs_is_given_up() -> None:
    """The others still come."""
    never = threading.Event()

    def hang() -> Iterator[Finding]:
        never.wait()
        yield ok("never")

    console = Console(file=io.StringIO(), width=80)
    with pytest.raises(DarkroomError):
        examine([Check("slow", hang, within_s=0.01), Check("next", lambda: [ok("fine")])], console)
    never.set()

    out = console.file.getvalue()  # type: ignore[attr-defined]
    assert "problem slow      no answer within 0.01 s" in out
    assert "ok      next      fine" in out


def test_an_error_on_purpose_is_a_problem_and_a_bug_is_not_hidden() -> None:
    """The message of the first is its way out."""

    def raising(error: Exception) -> Check:
        def run() -> Iterator[Finding]:
            raise error
            yield

        return Check("it", run)

    console = Console(file=io.StringIO(), width=80)
    with pytest.raises(DarkroomError, match="1 problem"):
        examine([raising(SpecError("output.path: is a file"))], console)
    with pytest.raises(ZeroDivisionError):
        examine([raising(ZeroDivisionError())], console)

    assert "output.path: is a file" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("facts", "gpus", "level", "texts"),
    [
        (NO_GPU, [], Level.OK, ["each worker computes on a CPU"]),
        (NO_GPU, [GPU], Level.PROBLEM, ["a build without CUDA", GPU, "pytorch.org"]),
        (
            {**NO_GPU, "cuda": "13.0", "reason": "The NVIDIA driver on your system is too old."},
            [GPU],
            Level.PROBLEM,
            ["CUDA 13.0", "driver on your system is too old", "Update the driver"],
        ),
        ({**NO_GPU, "cuda": "13.0"}, [GPU], Level.PROBLEM, ["CUDA_VISIBLE_DEVICES"]),
        (
            {**NO_GPU, "devices": [L4 | {"fault": "no kernel image"}]},
            [GPU],
            Level.PROBLEM,
            ["no kernel image"],
        ),
        ({**NO_GPU, "devices": [L4 | {"free_bytes": 2e9}]}, [GPU], Level.WARNING, ["nvidia-smi names it"]),
        ({**NO_GPU, "devices": [L4 | {"memory_bytes": 6e9}]}, [GPU], Level.WARNING, ["max_batch_rows"]),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_a_problem(
    facts: Mapping[str, Any], gpus: list[str], level: Level, texts: list[str]
) -> None:
    """The driver's word counts as much as torch's."""
    findings = [*check_devices(lambda: facts, lambda: gpus)]

    text = only(findings, level)
    assert all(part in text for part in texts), text


def test_a_good_gpu_is_described() -> None:
    """Its memory, and the precisions that it computes in."""
    findings = told(check_devices(lambda: {**NO_GPU, "devices": [L4]}, lambda: [GPU]))

    assert (Level.OK, "NVIDIA L4: 23.0 GB of 24.0 GB free, float16 and bfloat16") in findings


def test_a_broken_torch_is_a_problem() -> None:
    """Its own last line says why."""
    assert "libcudart" in only(check_devices(no_facts, list), Level.PROBLEM)


@pytest.mark.parametrize(
    ("facts", "address", "level", "text"),
    [
        (RAY, "", Level.OK, "Ray 2.60.0 starts on this machine: 8 CPUs and 1 GPU"),
        (RAY | {"is_own": False}, "head:6379", Level.OK, "answers at head:6379: 1 machine, 8 CPUs and 1 GPU"),
        (RAY | {"fault": "nothing answers there"}, "head:6379", Level.PROBLEM, "nothing answers there"),
        (RAY | {"num_cpus": 0}, "", Level.WARNING, "no CPU is free"),
    ],
)
def test_ray_starts_or_answers(facts: Mapping[str, Any], address: str, level: Level, text: str) -> None:
    """And its own reason is quoted where it does not."""
    assert text in only(check_ray(lambda: facts, address), level)


def test_ray_that_cannot_be_asked_is_a_problem() -> None:
    """It may have hung, and was killed."""
    assert "RAY_ADDRESS" in only(check_ray(no_facts, "head:6379"), Level.PROBLEM)


def test_an_address_where_nothing_answers_is_told_by_ray_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Ray's own patience of a quarter of an hour."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")

    assert "nothing answers there" in only(check_ray(), Level.PROBLEM)


def test_a_process_without_facts_is_killed_and_quoted() -> None:
    """Its last line tells why it has none."""
    with pytest.raises(NoFactsError, match="No module named"):
        facts_of("jobs.checkup.nowhere")
    with pytest.raises(NoFactsError, match="no answer within"):
        facts_of("jobs.checkup.ray_facts", patience_s=0.001)


def test_old_and_absent_libraries_are_named_with_the_command() -> None:
    """Each requirement of the package is compared by its numbers: 2.9 is older than 2.10."""
    versions = {"torch": "2.9.1+cu128", "ray": "2.60.0", "pyarrow": "26.0.1"}

    def installed(name: str) -> str:
        if name not in versions:
            raise PackageNotFoundError(name)
        return versions[name]

    findings = told(check_versions(["ray[default]>=2.60", "torch>=2.10", "peft>=0.21.2"], installed))

    problems = [text for level, text in findings if level is Level.PROBLEM]
    assert problems == [
        "torch is 2.9.1+cu128, and darkroom needs 2.10: pip install 'torch>=2.10'",
        "peft is not installed: pip install 'peft>=0.21.2'",
    ]


def test_the_libraries_under_test_fit() -> None:
    """Those that the package itself asks for."""
    assert all(finding.level is Level.OK for finding in check_versions())


def test_little_memory_is_a_warning() -> None:
    """A container's, and that of /dev/shm."""
    findings = [*check_memory(lambda: 2_000_000_000, lambda: 1, lambda _: 64_000_000)]

    assert [finding.level for finding in findings] == [Level.WARNING, Level.WARNING]
    assert "--memory" in findings[0].text
    assert "--shm-size" in findings[1].text


@pytest.mark.parametrize(
    ("free", "level"), [(10_000, Level.PROBLEM), (1_500_000_000, Level.WARNING), (10**12, Level.OK)]
)
def test_a_full_disk_is_a_problem(tmp_path: Path, free: int, level: Level) -> None:
    """Each line names what moves the folder elsewhere; S3 has no limit."""
    findings = [*check_disks(str(tmp_path / "out"), lambda _: free)]

    assert {finding.level for finding in findings} == {level}
    assert len(findings) == len([*check_disks("s3://bucket/out", lambda _: free)]) + 1
    if level is Level.PROBLEM:
        assert [finding.text.rpartition(" with ")[2] for finding in findings] == [
            "TMPDIR",
            "HF_HOME",
            "DARKROOM_CACHE",
            "output.path",
        ]


def test_the_hub_is_asked_unless_it_is_not_to_be() -> None:
    """That it does not answer is a warning: checkpoints may be here already."""

    def token() -> None:
        return None

    assert "timed out" in only(check_hub(lambda: "timed out", False, token), Level.WARNING)
    assert all(finding.level is Level.OK for finding in check_hub(lambda: "timed out", True, token))
    assert any("hf auth login" in finding.text for finding in check_hub(lambda: "", False, token))


def test_each_model_of_a_spec_is_read_but_demos(tmp_path: Path) -> None:
    """A gated one is a problem with the way out of its message."""

    def read(name: str, model: ModelSpec) -> ModelCard:
        if model.checkpoint == "org/gated":
            raise SpecError(f"models.{name}.checkpoint: org/gated is gated")
        return model_card(family="sd")

    names = {"a": "org/open", "b": "org/gated", "c": "demo:shapes"}
    spec = job_spec(
        tmp_path,
        tmp_path,
        models={name: {"checkpoint": checkpoint} for name, checkpoint in names.items()},
        routes={"text2img": {"model": "a"}},
    )

    findings = told(check_models(spec, read))

    assert [level for level, _ in findings] == [Level.OK, Level.PROBLEM]
    assert findings[1][1] == "models.b.checkpoint: org/gated is gated"
    assert isinstance(spec, JobSpec)


def test_a_store_that_exists_keeps_what_it_has(tmp_path: Path) -> None:
    """The check removes only what it has made."""
    (tmp_path / "out" / "empty").mkdir(parents=True)
    (tmp_path / "out" / "part").write_text("rows")

    findings = [*check_store(str(tmp_path / "out"))]

    assert [finding.level for finding in findings] == [Level.OK]
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == ["empty", "part"]
