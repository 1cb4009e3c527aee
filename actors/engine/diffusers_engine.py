"""From opened rows to pixels: chains step by step, each step's samples in cohorts, model by model."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace

import torch

from actors.engine.batching.merged_modules import CallCount
from actors.engine.calls.chains import decode_latents, made_images, withhold
from actors.engine.calls.decode_ahead import DecodeAhead
from actors.engine.calls.prompt_reader import PromptReader
from actors.engine.cohort_runner import CohortRunner
from actors.engine.cohorts import cohorts, samples_of
from actors.engine.engine import Generated
from actors.engine.pipelines.loading import LoadOptions
from actors.engine.pipelines.model_cache import ModelCache
from actors.engine.samples import Sample
from actors.images.encoding import Pixels
from actors.rows.opened_rows import OpenedRow
from schemas.job import Job
from schemas.spec.job_spec import JobSpec

COHORTS_A_BATCH = 4
"""A cohort is at most this part of a batch: of pieces so small one can always fill it to three quarters."""


class DiffusersEngine:
    """Makes a shard's pictures with diffusers; `model_cache` holds what it makes them with."""

    def __init__(self, models: ModelCache, spec: JobSpec) -> None:
        self._models = models
        self._batching = spec.batching
        self._flagged = spec.safety.flagged
        self.counts: dict[str, CallCount] = {}
        """What went through each kind of module so far."""
        self._runner: CohortRunner | None = None
        self._prompts = PromptReader(
            models, chunk=spec.long_prompts == "chunk", weighted=spec.prompt_weights == "compel"
        )

    @property
    def num_loads(self) -> int:
        """Checkpoints loaded so far."""
        return self._models.num_loads

    @property
    def models_loaded(self) -> tuple[str, ...]:
        """Names of the models in memory."""
        return self._models.names

    @property
    def num_batches(self) -> int:
        """Module calls so far; asked from other threads while one generates."""
        # The runner's are the engine's when it has ended: for a moment they count twice or not at all.
        runner = self._runner
        counts = [*self.counts.values(), *(runner.counts.values() if runner else ())]
        return sum(count.batches for count in counts)

    def generate(self, rows: Sequence[OpenedRow], decoders: Executor) -> Iterator[Generated]:
        """Every sample of the rows: the first steps of all chains, then the second ones, and so on."""
        waiting = samples_of(rows)
        while waiting:
            following: list[Sample] = []
            for generated in self._make_all(waiting, decoders):
                if self._is_last(generated):
                    yield withhold(generated, self._flagged) if generated.nsfw else generated
                else:
                    following.append(self._next(generated))
            waiting = following

    def _is_last(self, generated: Generated) -> bool:
        """Whether the row's chain ends here. Only a picture of which nothing is kept is not worth going on
        with: a black one has the size that the last step would have given."""
        dropped = generated.nsfw and self._flagged == "drop"
        return bool(generated.sample.following is None or generated.problem or dropped)

    def _make_all(self, samples: Sequence[Sample], decoders: Executor) -> Iterator[Generated]:
        """One step of each sample, model by model."""
        by_model: dict[str, list[Sample]] = {}
        for sample in self._prompts.read(samples):
            by_model.setdefault(sample.route.model, []).append(sample)
        for name, group in by_model.items():
            model = self._models.get(name)
            exact = self._batching.exact or model.is_made_alone
            largest = 1 if exact else max(1, self._batching.max_batch_rows // COHORTS_A_BATCH)
            ahead = DecodeAhead(cohorts(group, largest), decoders)
            runner = self._runner = CohortRunner(model, ahead, self._batching, exact=exact)
            yield from runner.run()
            self._runner = None
            for module, count in runner.counts.items():
                self.counts[module] = self.counts.get(module, CallCount()) + count

    def _next(self, generated: Generated) -> Sample:
        """The sample at its next step, with what this one gave."""
        sample = generated.sample
        step_images = sample.step_images
        if sample.opened.route.keep_steps:
            step_images += (self._picture(generated),)
        return replace(
            sample,
            step=sample.step + 1,
            made=made_images(generated),
            step_images=step_images,
            nsfw=generated.nsfw,
        )

    def _picture(self, generated: Generated) -> Pixels:
        """What a step has to show, decoded only for being kept where latents go on."""
        if generated.pixels is not None:
            return generated.pixels
        pipeline = self._models.get(generated.sample.route.model).pipeline(generated.sample.system, None)
        return decode_latents(pipeline, generated.latents)


def make_engine(job: Job, num_cpus: int) -> DiffusersEngine:
    """The engine of one worker process: on its GPU where Ray gave it one, else on exactly its CPUs."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # Ray sets OMP_NUM_THREADS=1 in actors; and more threads than cores cost a factor of ten.
    torch.set_num_threads(num_cpus)
    capacity = _capacity_bytes(job, device, num_cpus)
    options = LoadOptions(
        device=device,
        with_checker=job.spec.safety.checker == "on",
        channels_last=device.type == "cuda" and not job.spec.batching.exact,
    )
    return DiffusersEngine(ModelCache(job.checkpoints, options, capacity), job.spec)


def _capacity_bytes(job: Job, device: torch.device, num_cpus: int) -> int:
    """Of weights in memory; the rest is for activations."""
    given = job.spec.workers.model_cache_gb
    if given != "auto":
        return int(given * 1e9)
    if device.type == "cuda":
        return int(0.8 * torch.cuda.get_device_properties(device).total_memory)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    workers_here = max(1, (os.cpu_count() or 1) // num_cpus)
    return memory // 2 // workers_here
