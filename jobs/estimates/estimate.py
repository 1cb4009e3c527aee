"""How long a job will take: what its images ask for, at the rate of its workers."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from math import ceil

from actors.rows.denoising import StepWork
from actors.storage.output import Output
from jobs.estimates.measured import Measurement, measurements
from jobs.estimates.published import PublishedGpu, published_gpu
from jobs.estimates.rates import Rate, guessed_rate, measured_rate, speeds_of_model
from jobs.estimates.worker_count import ExpectedWorkers
from jobs.output.figures import PlannedTime
from jobs.planning.plan import Plan
from jobs.planning.row_scan import INPUT, Findings, RouteCount
from schemas.job import Job, Speed
from schemas.wording.amounts import counted

START_S = 10.0
"""Ray's start and that of the first worker, until it takes its first shard, on a machine with nothing else to
do. Most of it is the import of torch and diffusers."""
LOADING_S = 10.0
"""The loading of a model that was not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """From what a time is told."""

    measurement: Measurement | None = None
    speeds: tuple[Speed, ...] = ()
    """Those of its speeds that are of the workers' kind of device."""
    gpu: PublishedGpu | None = None
    """The published figures for models without a measured speed; None: there are none for the device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """How long a job will take, from the start of Ray to its last part."""

    workers: ExpectedWorkers
    seconds: float
    least_seconds: float
    most_seconds: float
    source: str
    """From what it is told; empty if nothing of the job is known."""
    start_seconds: float
    """Of `seconds`, those in which Ray and the workers start."""
    load_seconds: float
    """Of `seconds`, those in which a worker loads its models."""
    caveats: tuple[str, ...] = ()
    """What is not as it was measured, a line each."""
    unknown_models: tuple[str, ...] = ()
    """The models whose images are not counted, because nothing is known of them."""

    def planned(self, rows: int) -> PlannedTime:
        """What is recorded of it, for a run that gives this many rows an outcome."""
        return PlannedTime(
            rows=rows,
            workers=self.workers.num,
            seconds=round(self.seconds, 1),
            least_seconds=round(self.least_seconds, 1),
            most_seconds=round(self.most_seconds, 1),
            source=self.source,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What one step of a chain asks of a model, for all rows with the same sizes."""

    model: str
    images: int
    of_step: StepWork
    sized_by_input: bool


def basis_for(job: Job, output: Output, workers: ExpectedWorkers) -> Basis:
    """The newest measurement of a model of this job on this kind of device, or else published figures."""
    gpu = published_gpu(workers.device)
    for measurement in measurements(output):
        all_speeds = measurement.run.speeds
        # Of a cluster's machines nothing is known: they are taken for those on which it was measured.
        device = workers.device or max(all_speeds, key=lambda speed: speed.seconds).device
        speeds = tuple(speed for speed in all_speeds if speed.device == device)
        if any(speeds_of_model(speeds, card, job.spec.models[name]) for name, card in job.models.items()):
            return Basis(measurement=measurement, speeds=speeds, gpu=gpu or published_gpu(device))
    return Basis(gpu=gpu)


def estimate(
    plan: Plan, findings: Findings, basis: Basis, workers: ExpectedWorkers, *, share: float = 1.0
) -> Estimate:
    """The time of a job, or of this `share` of its rows.

    Workers share the shards, so the last ones are done half a shard apart, and no worker takes less time than
    a shard does. There are no more workers than shards. Every worker loads every model.
    """
    num_shards = max(1, ceil(share * plan.num_shards))
    seconds = least = most = load_seconds = 0.0
    caveats: dict[str, None] = _too_many(workers.num, num_shards)
    workers = replace(workers, num=min(workers.num, num_shards))
    unknown: dict[str, None] = {}
    is_guess = is_known = False
    for model, works in groupby(
        sorted(_works(findings), key=lambda work: work.model), lambda work: work.model
    ):
        load_seconds += _load_seconds(model, basis)
        for work in works:
            rate = _rate(work, plan.job, basis, workers)
            if rate is None:
                unknown[model] = None
                continue
            taken = share * _seconds(work, rate)
            seconds += taken
            least += taken * rate.spread.least
            most += taken * rate.spread.most
            caveats |= {f"{model}: {rate.caveat}": None} if rate.caveat else {}
            is_known, is_guess = True, is_guess or rate.is_guess
    start = _start_seconds(basis)
    of_shard = min(1.0, plan.shard_rows / max(1.0, share * plan.num_rows))
    least, middle, most = (makespan(each, of_shard, workers.num) for each in (least, seconds, most))
    return Estimate(
        workers=workers,
        seconds=start + load_seconds + middle,
        least_seconds=0.6 * start + 0.8 * load_seconds + least,
        most_seconds=2 * start + 1.5 * load_seconds + most,
        source=_source(basis, is_guess=is_guess) if is_known else "",
        start_seconds=start,
        load_seconds=load_seconds,
        caveats=tuple(caveats),
        unknown_models=tuple(unknown),
    )


def _too_many(num_workers: int, num_shards: int) -> dict[str, None]:
    """What is to be told if there are more workers than shards."""
    if num_workers <= num_shards:
        return {}
    parts = counted(num_shards, "part")
    return {f"{parts} for {num_workers:,} workers; a smaller batching.shard_rows makes more parts": None}


def makespan(seconds: float, of_shard: float, num_workers: int) -> float:
    """The time of `num_workers` that share this many seconds; `of_shard`: the largest piece, as a share."""
    longest = seconds * of_shard
    return max(longest, seconds / num_workers + longest / 2 * (1 - 1 / num_workers))


def _works(findings: Findings) -> Iterator[_Work]:
    for count in findings.counts:
        yield from _works_of(count)


def _works_of(count: RouteCount) -> Iterator[_Work]:
    steps = [(count.model, count.size), *((step.model, step.size) for step in count.then)]
    for (model, size), work in zip(steps, count.work, strict=True):
        yield _Work(model=model, images=count.images, of_step=work, sized_by_input=INPUT in size)


def _rate(work: _Work, job: Job, basis: Basis, workers: ExpectedWorkers) -> Rate | None:
    """The rate at which a worker does this; None if it is not known."""
    card = job.models[work.model]
    measured = measured_rate(
        speeds_of_model(basis.speeds, card, job.spec.models[work.model]),
        work.of_step.task,
        work.of_step.pixels / max(1, work.images),
        num_cpus=workers.num_cpus,
        sized_by_input=work.sized_by_input,
    )
    return measured or (guessed_rate(basis.gpu, card) if basis.gpu else None)


def _seconds(work: _Work, rate: Rate) -> float:
    """The seconds that one worker takes for this work."""
    num_images = max(1, work.images)
    pixels = work.of_step.pixels / num_images if rate.pixels is None else rate.pixels
    passes = work.of_step.image_steps + work.of_step.guided_steps
    return pixels * (passes * rate.seconds_a_pass + work.images * rate.seconds_an_image)


def _load_seconds(model: str, basis: Basis) -> float:
    measured = basis.measurement.run.load_seconds if basis.measurement else {}
    return measured.get(model, LOADING_S)


def _start_seconds(basis: Basis) -> float:
    """The seconds until workers are ready, and in which they wait for more than their device."""
    if basis.measurement and basis.measurement.on_ray:
        run = basis.measurement.run
        return max(0.0, run.seconds - run.working_seconds)
    return START_S


def _source(basis: Basis, *, is_guess: bool) -> str:
    measured = f"measured by {basis.measurement.source}" if basis.measurement else ""
    guessed = f"a guess from published figures of the {basis.gpu.name}" if is_guess and basis.gpu else ""
    return ", and in part ".join(filter(None, [measured, guessed]))


def guesses(
    plan: Plan, findings: Findings, workers: ExpectedWorkers, gpus: Iterable[PublishedGpu]
) -> list[tuple[PublishedGpu, Estimate]]:
    """What the job would take on each of these GPUs, if its models have the size of published ones."""
    on_gpu = replace(workers, num_cpus=0, gpus_each=1.0)
    each = [(gpu, estimate(plan, findings, Basis(gpu=gpu), on_gpu)) for gpu in gpus]
    return [(gpu, guess) for gpu, guess in each if guess.source and not guess.unknown_models]
