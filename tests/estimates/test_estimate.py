"""How long a job will take, told with plain numbers."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.engine.diffusers_engine import DiffusersEngine
from actors.storage.output import open_output
from jobs.estimates.estimate import START_S, Basis, Estimate, estimate, makespan
from jobs.estimates.measured import Measurement
from jobs.estimates.planned_time import read_planned
from jobs.estimates.published import GPUS, published_gpu
from jobs.estimates.rates import GUESSED, MEASURED, SCALED, guessed_rate, measured_rate
from jobs.estimates.time_lines import time_lines
from jobs.estimates.worker_count import ExpectedWorkers, expected_workers
from jobs.output.figures import RunFigures
from jobs.planning.plan import Plan, make_plan
from jobs.planning.row_scan import Findings
from jobs.survey.survey import make_survey
from schemas.job import Speed
from schemas.output_layout import ESTIMATE, SUMMARY
from schemas.spec.job_spec import JobSpec, WorkersSpec
from tests.support.in_process import job_spec, model_cache, write_rows
from tests.support.running import parts
from tests.support.simulation.in_process_driver import InProcessDriver

GPU = ExpectedWorkers(num=1, device="NVIDIA A100-SXM4-80GB")


def speed(**changes: Any) -> Speed:
    """Ten images of 64 x 64 with 100 steps, all with guidance: a step of an image takes 0.02 s."""
    fields: dict[str, Any] = {"device": GPU.device, "num_cpus": 0, "model": "sd", "checkpoint": "demo:sd"}
    fields |= {"dtype": "auto", "task": "text2img", "pixels": 4096, "images": 10}
    counts = {"image_steps": 100, "guided_steps": 100, "step_seconds": 2.0, "image_seconds": 1.0}
    return Speed(**(fields | counts | changes))


def basis(*speeds: Speed, load_seconds: float = 3.0) -> Basis:
    """What a trial has measured."""
    run = RunFigures(speeds=speeds, load_seconds={"sd": load_seconds})
    return Basis(measurement=Measurement(source="the trial t", run=run, on_ray=False), speeds=speeds)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> JobSpec:
    """Twelve rows of a step each with guidance, in shards of four."""
    folder = tmp_path_factory.mktemp("estimate")
    rows = [{"row_id": str(i), "prompt": "p", "height": 64, "width": 64} for i in range(12)]
    routes = {"text2img": {"model": "sd", "num_inference_steps": 10}}
    path = write_rows(folder / "rows.parquet", rows)
    return job_spec(path, folder / "out", routes=routes, batching={"shard_rows": 4})


@pytest.fixture(scope="module")
def planned(spec: JobSpec) -> tuple[Plan, Findings]:
    """The plan of the job, and its findings."""
    return make_plan(make_survey(spec))


def expect(planned: tuple[Plan, Findings], told: Basis, workers: ExpectedWorkers = GPU) -> Estimate:
    return estimate(*planned, told, workers)


def test_the_time_is_made_of_steps_images_loading_and_the_start(planned: tuple[Plan, Findings]) -> None:
    """Twelve images with ten steps: 120 steps of 0.02 s, and 0.1 s for each image."""
    known = expect(planned, basis(speed()))

    assert known.seconds == pytest.approx(START_S + 3.0 + 120 * 0.02 + 12 * 0.1)
    assert known.least_seconds == pytest.approx(0.6 * START_S + 2.4 + MEASURED.least * 3.6)
    assert known.most_seconds == pytest.approx(2 * START_S + 4.5 + MEASURED.most * 3.6)
    assert (known.caveats, known.unknown_models) == ((), ())


def test_workers_share_the_shards(planned: tuple[Plan, Findings]) -> None:
    """Of three shards, each of 1.2 s, two workers have one and two: between 1.8 s and 2.4 s."""
    assert makespan(3.6, 1 / 3, 1) == 3.6
    assert makespan(3.6, 1 / 3, 2) == pytest.approx(2.1)
    assert makespan(3.6, 1 / 3, 50) == pytest.approx(1.2)
    two = expect(planned, basis(speed()), replace(GPU, num=2))
    assert two.seconds == pytest.approx(START_S + 3.0 + 2.1)
    assert two.caveats == ()


def test_there_are_no_more_workers_than_parts(planned: tuple[Plan, Findings]) -> None:
    """Fifty workers for three parts are three workers, also in the price, and this is said."""
    fifty = expect(planned, basis(speed()), replace(GPU, num=50))
    three = expect(planned, basis(speed()), replace(GPU, num=3))

    assert (fifty.workers, fifty.seconds) == (three.workers, three.seconds)
    assert fifty.caveats == ("3 parts for 50 workers; a smaller batching.shard_rows makes more parts",)


@given(
    num_rows=st.integers(1, 5000),
    more=st.integers(0, 500),
    shard_rows=st.integers(1, 300),
    workers=st.integers(1, 64),
)
def test_more_rows_take_no_less_time_and_more_workers_no_more(
    num_rows: int, more: int, shard_rows: int, workers: int
) -> None:
    """However the rows fall into shards."""

    def of(rows: int, num: int) -> float:
        return makespan(float(rows), min(1.0, shard_rows / rows), num)

    nearly = 1 + 1e-9
    assert of(num_rows, workers) <= of(num_rows + more, workers) * nearly
    assert of(num_rows, 2 * workers) <= of(num_rows, workers) * nearly
    assert of(num_rows, 1) == num_rows


def test_another_size_is_scaled_by_pixels_and_said(planned: tuple[Plan, Findings]) -> None:
    """A quarter of the pixels take a quarter of the time; the nearest size is taken."""
    large = speed(pixels=4 * 4096, step_seconds=8.0, image_seconds=4.0)
    known = expect(planned, basis(large, speed(pixels=100 * 4096)))

    assert known.seconds == pytest.approx(START_S + 3.0 + 3.6)
    assert known.most_seconds == pytest.approx(2 * START_S + 4.5 + SCALED.most * 3.6)
    assert known.caveats == ("sd: text2img was measured at another size, and is scaled by pixels",)


def test_another_task_of_the_model_counts_as_the_measured_one(planned: tuple[Plan, Findings]) -> None:
    """And this is said."""
    known = expect(planned, basis(speed(task="inpaint")))

    assert known.seconds == pytest.approx(START_S + 3.0 + 3.6)
    assert known.caveats == ("sd: text2img was not measured, and counts as inpaint",)


def test_a_model_of_which_nothing_is_known_is_not_counted(planned: tuple[Plan, Findings]) -> None:
    """Another checkpoint or dtype is another model; tiny ones have no published figures either."""
    for other in (speed(checkpoint="demo:other"), speed(dtype="float32")):
        known = expect(planned, replace(basis(other), gpu=published_gpu(GPU.device)))

        assert (known.unknown_models, known.source) == (("sd",), "")


def test_a_rate_is_that_of_the_workers_threads() -> None:
    """What two threads did in a second, one does in two."""
    measured = [speed(num_cpus=2)]

    rate = measured_rate(measured, "text2img", 4096, num_cpus=1, sized_by_input=False)

    assert rate is not None
    assert rate.seconds_a_pass * 200 * 4096 == pytest.approx(4.0)
    assert rate.seconds_an_image * 10 * 4096 == pytest.approx(2.0)


def test_the_sizes_of_input_images_are_those_that_were_measured() -> None:
    """Before the job nobody has read them: the mean of the sample is taken."""
    measured = [speed(pixels=1000, images=30), speed(pixels=5000, images=10)]

    rate = measured_rate(measured, "text2img", 4096, num_cpus=0, sized_by_input=True)

    assert rate is not None
    assert (rate.pixels, rate.caveat) == (2000, "")


def test_published_figures_are_a_guess(planned: tuple[Plan, Findings]) -> None:
    """57.6 steps a second on an A100, for a checkpoint of the published size; a guess says so."""
    plan, _ = planned
    card = replace(plan.job.models["sd"], weight_bytes=0)
    gpu = published_gpu("NVIDIA A100-SXM4-80GB")
    assert gpu is not None

    rate = guessed_rate(gpu, card)

    assert rate is not None
    assert rate.seconds_a_pass * 2 * 512 * 512 == pytest.approx(1 / 57.6)
    assert (rate.spread, rate.is_guess) == (GUESSED, True)
    xl = guessed_rate(gpu, replace(card, family="sdxl"))
    assert xl is not None
    assert xl.seconds_a_pass * 2 * 1024 * 1024 == pytest.approx(1 / 8.43)


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("Tesla T4", "T4"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA L40S", None),
        ("AMD EPYC", None),
        ("", None),
    ],
)
def test_a_published_gpu_is_told_by_its_whole_name(device: str, name: str | None) -> None:
    """As the driver writes it."""
    gpu = published_gpu(device)

    assert (gpu and gpu.name) == name


def test_workers_are_those_that_are_asked_for_or_find_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a cluster nothing is known but what the spec says."""
    here = expected_workers(WorkersSpec(num=3, num_gpus=0, num_cpus=2))
    assert (here.num, here.num_cpus, here.gpus_each) == (3, 2, 0.0)
    assert expected_workers(WorkersSpec(num=3), 7).num == 7

    monkeypatch.setenv("RAY_ADDRESS", "ray.example:6379")
    assert expected_workers(WorkersSpec()) == ExpectedWorkers(num=1)


def lines_of(planned: tuple[Plan, Findings], path: Path, **options: Any) -> list[str]:
    return [*time_lines(*planned, open_output(str(path)), **options)]


def write_summary(folder: Path, run: RunFigures) -> None:
    """The summary of a trial that has measured this."""
    counts = dict.fromkeys(("shards", "ok", "filtered", "failed", "images", "size_bytes"), 1)
    summary = {"fingerprint": "f", "error_codes": {}, "last_run": asdict(run), **counts}
    (folder / SUMMARY).parent.mkdir(parents=True)
    (folder / SUMMARY).write_text(json.dumps(summary))


def test_a_plan_tells_the_time_from_the_newest_trial_of_this_device(
    planned: tuple[Plan, Findings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newer one of another device is left out, and so is a damaged one; the price is that of the time."""
    monkeypatch.setenv("RAY_ADDRESS", "")
    here = expected_workers(planned[0].job.spec.workers)
    own = speed(device=here.device, num_cpus=here.num_cpus, step_seconds=2000.0)
    for number, each in enumerate((speed(step_seconds=9.0), own, speed(device="NVIDIA T9")), 1):
        write_summary(tmp_path / "out.trials" / f"{number:04}", RunFigures(speeds=(each,)))
    (tmp_path / "out.trials/0004/_darkroom").mkdir(parents=True)
    (tmp_path / "out.trials/0004" / SUMMARY).write_text("{")

    first, *others = lines_of(planned, tmp_path / "out", workers=2)
    on_cluster = lines_of_cluster(planned, tmp_path / "out", monkeypatch)

    assert first.endswith(
        f"with 2 workers on {here.device}; measured by the trial {tmp_path}/out.trials/0002"
    )
    # 120 steps of 20 s in three shards, for two workers.
    assert "18 min" in first
    assert "29 min" in first
    assert others[0].startswith("  of this, about 10 s to start Ray and workers")
    assert "measured by the trial" in on_cluster[0]
    assert "0003" in on_cluster[0]
    assert on_cluster[-1].startswith("cost: $0.02 to $0.04 at $1.80 an hour of a GPU")


def lines_of_cluster(
    planned: tuple[Plan, Findings], path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    monkeypatch.setenv("RAY_ADDRESS", "ray.example:6379")
    return lines_of(planned, path, workers=2, gpu_hour=1.8)


def test_a_plan_says_that_nothing_is_known(planned: tuple[Plan, Findings], tmp_path: Path) -> None:
    """And how to know it; for a checkpoint of the published size it guesses."""
    assert [line.split(";")[1] for line in lines_of(planned, tmp_path / "out")] == [
        " `darkroom try SPEC` generates a few rows and measures them"
    ]
    plan, findings = planned
    cards = {"sd": replace(plan.job.models["sd"], weight_bytes=0)}
    large = replace(plan, job=replace(plan.job, models=cards))

    _, *guesses = lines_of((large, findings), tmp_path / "out")

    assert [guess.split(" on ")[1] for guess in guesses] == [gpu.name for gpu in GPUS[:3]]
    assert all(guess.startswith("  a guess from published figures: ") for guess in guesses)


def test_a_run_is_compared_with_what_was_planned(tmp_path: Path) -> None:
    """With a trial beside it, its summary, its end and its page tell both; its parts are the same bytes."""
    rows = [{"row_id": str(i), "prompt": "p", "height": 64, "width": 64} for i in range(4)]
    path = write_rows(tmp_path / "rows.parquet", rows)
    specs = [job_spec(path, tmp_path / name, batching={"shard_rows": 2}) for name in ("out", "again")]

    def run(spec: JobSpec) -> str:
        driver = InProcessDriver(spec, num_workers=1)
        driver.engine = lambda: DiffusersEngine(model_cache(spec), spec)
        result = driver.run()
        page = (Path(spec.output.path) / "contact-sheet.html").read_text()
        assert ("planned" in page) == bool(result.run.planned)
        return f"{result.run.planned and result.run.planned.source}"

    first = run(specs[0])
    shutil.copytree(tmp_path / "out", tmp_path / "again.trials" / "0001")
    second = run(specs[1])

    assert first == "None"
    assert not (tmp_path / "out" / ESTIMATE).exists()
    assert second == f"measured by the trial {tmp_path}/again.trials/0001"
    planned = read_planned(open_output(str(tmp_path / "again")))
    assert planned is not None
    assert (planned.rows, planned.workers) == (4, expected_workers(specs[1].workers).num)
    assert planned.least_seconds < planned.seconds < planned.most_seconds
    summary = json.loads((tmp_path / "again" / SUMMARY).read_text())
    assert summary["last_run"]["planned"] == asdict(planned)
    assert [part.read_bytes() for part in parts(tmp_path / "out")] == [
        part.read_bytes() for part in parts(tmp_path / "again")
    ]
