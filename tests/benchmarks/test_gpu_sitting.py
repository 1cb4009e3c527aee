"""A benchmark in one sitting ends in time, and nothing that fails ends it earlier."""

import dataclasses
import signal
import threading
from argparse import Namespace
from contextlib import suppress
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.device.time_budget import Budget, OutOfTime
from benchmarks.parity import documented_waits
from benchmarks.parity.device_checks import Check, verdict_of
from benchmarks.sitting.gpu_bench import CONTENDERS
from benchmarks.sitting.gpu_cases import MODELS, PARTS, Case, cases, typical
from benchmarks.sitting.gpu_lines import Sitting
from benchmarks.workloads import DIFFERENT, EQUAL, Row, different
from schemas.spec.job_spec import KernelsSpec
from schemas.systems.schedulers import SCHEDULERS

CPU = torch.device("cpu")
QUICK = ["--device", "cpu", "--tiny", "--compile", "off", "--models", "sd15", "--rows", "2", "--steps", "2"]
QUICK += ["--dtypes", "float32", "--threads", "1"]


def options(*more: str) -> Namespace:
    return gpu.arguments([*QUICK, *more])


def printed(capsys: pytest.CaptureFixture[str], *cases: Case, budget_s: float) -> list[list[str]]:
    """The cells of the table's lines."""
    Sitting(cases, ["r0", "darkroom"], Budget(budget_s), 1.0).print_table()
    table, _, _ = capsys.readouterr().out.partition("\n\n")
    return [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]


class HalfWrong(Case):
    """A case whose equal rows have a size that no contender can generate."""

    def rows(self, workload: str) -> list[Row]:
        size = {"height": 60} if workload == EQUAL else {}
        return [each | size for each in Case.rows(self, workload)]


def test_a_budget_ends_what_runs() -> None:
    """Also code that takes every Exception for its own; afterwards nothing is left of the alarm."""
    handler = signal.getsignal(signal.SIGALRM)

    def work() -> None:
        while True:
            with suppress(Exception):
                sum(range(100))

    with pytest.raises(OutOfTime), Budget(0.05).interrupting(pytest.fail):
        work()

    assert signal.getsignal(signal.SIGALRM) is handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_who_does_not_end_when_interrupted_is_given_up() -> None:
    """As code that waits for another thread in a `finally`."""
    given_up = threading.Event()

    def wait_twice() -> None:
        try:
            threading.Event().wait(30)
        finally:
            threading.Event().wait(30)

    with pytest.raises(OutOfTime), Budget(0.05).interrupting(given_up.set, grace_s=0.05):
        wait_twice()

    assert given_up.is_set()


def test_a_spent_budget_begins_nothing() -> None:
    """Nor does it wait."""
    begun = []

    with pytest.raises(OutOfTime), Budget(0).interrupting(pytest.fail):
        begun.append("work")

    assert begun == []


def test_what_the_budget_leaves_out_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Each line is in the table, with its reason."""
    lines = printed(capsys, *cases(options("--compile", "off", "on"), CPU), budget_s=0)

    choices = 3 + 1 + 1 + 1
    assert len(lines) == 2 * (2 + 2 + 2) + 1 + choices
    assert {line[-1] for line in lines} == {"left out: the budget is spent"}


def test_a_contender_that_fails_does_not_end_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    """Its line says why, and the next workload has its figures."""
    case, *_ = cases(options(), CPU)
    half_wrong = HalfWrong(**{field.name: getattr(case, field.name) for field in dataclasses.fields(case)})

    lines = printed(capsys, half_wrong, budget_s=60)

    by_workload: dict[str, list[Any]] = {EQUAL: [], DIFFERENT: []}
    for line in lines:
        by_workload[line[4].partition(",")[0]].append(line)
    assert [line[-1].partition(":")[0] for line in by_workload[EQUAL]] == ["failed", "failed"]
    assert [line[-1] for line in by_workload[DIFFERENT]] == ["nowhere", "nowhere"]
    assert all(float(line[6]) > 0 for line in by_workload[DIFFERENT])


def test_a_few_typical_rows_have_the_mean_number_of_steps() -> None:
    """So that the loop over a few rows is compared with a run over all of them."""
    few = typical(different(64, 512, 20), 6)

    assert len({row["row_id"] for row in few}) == 6
    assert sum(row["num_inference_steps"] for row in few) / 6 == pytest.approx(20, abs=1)


def test_every_key_of_the_kernels_is_measured_on_and_off() -> None:
    """What matters for float32 alone is measured with the model whose VAE float16 does not hold."""
    measured = [
        each for each in cases(options("--models", *MODELS, "--parts", "kernels"), CPU) if each.name == "sdxl"
    ]

    keys = {key for each in measured for key in each.kernels}
    assert keys == {*KernelsSpec.model_fields}
    for dtype in ("float32", "float16"):
        assert sum(not each.kernels for each in measured if each.dtype == dtype) == 1
    for each in measured:
        KernelsSpec.model_validate(each.kernels)


def test_the_command_line_knows_all_models_and_contenders() -> None:
    """It names them itself, because it answers before torch is imported."""
    chosen = gpu.arguments(["--models", *MODELS, "--contenders", *CONTENDERS, "--parts", *PARTS])

    assert chosen.models == [*MODELS]
    assert chosen.contenders == [*CONTENDERS]


def test_a_check_that_needs_cuda_does_not_pass_without() -> None:
    """And one that finds a fault is wrong."""

    def fault() -> str:
        raise AssertionError("it differs")

    verdicts = [
        verdict_of(Check(name="a", run=fault, needs_cuda=True), "cpu"),
        verdict_of(Check(name="b", run=fault), "cpu"),
        verdict_of(Check(name="c", run=lambda: "equal"), "cpu"),
    ]

    assert verdicts == [
        ("not made", "it needs a CUDA device"),
        ("WRONG", "AssertionError: it differs"),
        ("right", "equal"),
    ]


def test_the_documented_waits_are_those_of_every_scheduler_and_task() -> None:
    """With a safety checker or a crop there would be more; these rows wait for nothing but their images."""
    rows = [*documented_waits.rows()]

    assert {row["scheduler"] for row in rows} == {*SCHEDULERS}
    assert len(rows) == 3 * len(SCHEDULERS)
    assert {documented_waits.waits_of(row["scheduler"], row["task"]) for row in rows} == {0}


def test_a_documented_value_of_a_task_is_found_in_its_place() -> None:
    """A cell has one value for each task, or one for all of them."""
    page = (
        "text\n\n| scheduler: a / b | step waits | row waits |\n|---|---|---|\n| X | 1 / 2 / 3 | 4 |\n\nmore"
    )

    assert documented_waits.table_rows(page, "scheduler: a / b") == {
        "X": {"step waits": "1 / 2 / 3", "row waits": "4"}
    }
