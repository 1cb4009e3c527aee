"""From opened rows to pixels: one plain diffusers call per cohort, split when it fails."""

import logging
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from actors.calls import Decoded, Picture, arguments, check_pictures, pictures_of
from actors.chains import decode_latents, made_images
from actors.cohorts import Cohort, cohorts, samples_of
from actors.components import LoadedModel, ModelCache
from actors.engine import Generated, Pixels
from actors.prompts import PromptReader, check_texts
from actors.safety import combined, withhold
from actors.samples import OpenedRow, Sample
from schemas.errors import DarkroomError, RowError
from schemas.job import Job
from schemas.spec import JobSpec

logger = logging.getLogger(__name__)


class DiffusersEngine:
    """Makes a shard's pictures with diffusers; `model_cache` holds what it makes them with."""

    def __init__(self, models: ModelCache, spec: JobSpec, device: torch.device) -> None:
        self._models = models
        self._device = device
        self._max_batch_rows = spec.batching.max_batch_rows
        self._flagged = spec.safety.flagged
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
        """One step of each sample; the next cohort's pictures are decoded while this one runs."""
        waiting = cohorts(self._prompts.read(samples), self._max_batch_rows)
        coming = _decode(next(waiting, None), decoders)
        while coming is not None:
            current, coming = coming, _decode(next(waiting, None), decoders)
            yield from self._make(current)

    def _next(self, generated: Generated) -> Sample:
        """The sample at its next step, with what this one gave."""
        sample = generated.sample
        kept = sample.kept
        if sample.opened.row.routed.keep_steps:
            kept += (self._picture(generated),)
        return replace(
            sample, step=sample.step + 1, made=made_images(generated), kept=kept, nsfw=generated.nsfw
        )

    def _picture(self, generated: Generated) -> Pixels:
        """What a step has to show, decoded only for being kept where latents go on."""
        if generated.pixels is not None:
            return generated.pixels
        pipeline = self._models.get(generated.sample.routed.model).pipeline(generated.sample.system, None)
        return decode_latents(pipeline, generated.latents)

    def _make(self, decoding: "_Decoding") -> Iterator[Generated]:
        fit: list[Decoded] = []
        for sample, pictures in decoding.samples:
            try:
                ready = {field: future.result() for field, future in pictures.items()}
                check_pictures(sample, ready)
                check_texts(sample)
                fit.append((sample, ready))
            except RowError as problem:
                yield Generated(sample=sample, pixels=None, nsfw=None, problem=problem)
        if fit:
            yield from self._run(decoding.cohort, fit)

    def _run(self, cohort: Cohort, decoded: list[Decoded]) -> Iterator[Generated]:
        """One call, or after a failure two calls of half the size: one bad row or too large a batch
        costs no other row its picture."""
        failure = None
        try:
            made = self._call(cohort, decoded)
        except RowError as problem:
            made = [_failed(sample, problem) for sample, _ in decoded]
        except DarkroomError:
            raise
        except Exception as error:
            if _is_fatal(error):
                raise
            logger.warning("a call for %d pictures failed: %s", len(decoded), error)
            failure = _problem(error)
        # Outside the `except`: the traceback there keeps the failed call's tensors in memory.
        yield from made if failure is None else self._after_failure(cohort, decoded, failure)

    def _after_failure(
        self, cohort: Cohort, decoded: list[Decoded], problem: RowError
    ) -> Iterator[Generated]:
        if len(decoded) == 1:
            yield _failed(decoded[0][0], problem)
            return
        if problem.code == "out_of_memory" and self._device.type == "cuda":
            torch.cuda.empty_cache()
        half = len(decoded) // 2
        yield from self._run(cohort, decoded[:half])
        yield from self._run(cohort, decoded[half:])

    @torch.inference_mode()
    def _call(self, cohort: Cohort, decoded: list[Decoded]) -> list[Generated]:
        scheduler, options = cohort.parameters.get("scheduler"), cohort.parameters.get("scheduler_options")
        model = self._models.get(cohort.model)
        pipeline = model.pipeline(
            cohort.system, str(scheduler) if scheduler else None, str(options) if options else None
        )
        output = pipeline(**arguments(cohort, decoded, pipeline))
        made = pictures_of(output, len(decoded), gives_latents=cohort.gives_latents)
        flags = _flags(model, pipeline, made)
        return [
            _result(sample, picture, flag)
            for (sample, _), picture, flag in zip(decoded, made, flags, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class _Decoding:
    cohort: Cohort
    samples: list[tuple[Sample, dict[str, Future[Image.Image]]]]


def _decode(cohort: Cohort | None, decoders: Executor) -> _Decoding | None:
    if cohort is None:
        return None
    samples = [
        (sample, {field: decoders.submit(image.decode) for field, image in sample.images.items()})
        for sample in cohort.samples
    ]
    return _Decoding(cohort, samples)


def _flags(model: LoadedModel, pipeline: Any, made: Sequence[Picture]) -> Sequence[bool | None]:
    """The verdict on each picture; latents that go on are decoded for it, for the next model may have no
    checker."""
    if model.safety_checker is None:
        return [None] * len(made)
    return model.safety_checker.flags([_shown(picture, pipeline) for picture in made])


def _shown(picture: Picture, pipeline: Any) -> Pixels:
    if picture.pixels is not None:
        return picture.pixels
    assert picture.latents is not None, "a picture has the one or the other"
    return decode_latents(pipeline, picture.latents)


def _result(sample: Sample, picture: Picture, nsfw: bool | None) -> Generated:
    if not picture.finite:
        problem = RowError("nonfinite_image", "the model gave NaN or infinite pixels; try dtype: float32")
        return _failed(sample, problem)
    return Generated(
        sample=sample,
        pixels=picture.pixels,
        latents=picture.latents,
        depth=picture.depth,
        nsfw=combined(sample.nsfw, nsfw),
    )


def _failed(sample: Sample, problem: RowError) -> Generated:
    if sample.opened.row.routed.then:
        problem = RowError(problem.code, f"step {sample.step + 1} ({sample.routed.route}): {problem.message}")
    return Generated(sample=sample, pixels=None, nsfw=None, problem=problem)


def _problem(error: Exception) -> RowError:
    """What goes into the part: without addresses and amounts of free memory, which differ between runs."""
    said = re.sub(r"0x[0-9a-fA-F]+", "0x...", f"{type(error).__name__}: {error}".strip())
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "not enough memory" in said:
        return RowError(
            "out_of_memory", "this picture does not fit in memory even alone; ask for a smaller one"
        )
    return RowError("generation_error", said[:500])


def _is_fatal(error: Exception) -> bool:
    """After a CUDA fault the process can compute nothing more: let the worker be replaced."""
    return isinstance(error, torch.AcceleratorError)


def make_engine(job: Job, num_cpus: int) -> DiffusersEngine:
    """The engine of one worker process: on its GPU where Ray gave it one, else on exactly its CPUs."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # Ray sets OMP_NUM_THREADS=1 in actors; and more threads than cores cost a factor of ten.
    torch.set_num_threads(num_cpus)
    capacity = _capacity_bytes(job, device, num_cpus)
    models = ModelCache(job.checkpoints, device, capacity, with_checkers=job.spec.safety.checker == "on")
    return DiffusersEngine(models, job.spec, device)


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
