"""From one model's cohorts to images: diffusers calls run side by side, and are split when they fail."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from actors.engine.batching.batch_policy import Stage
from actors.engine.batching.batcher import Batcher, Outcome
from actors.engine.batching.merged_modules import CallCount
from actors.engine.batching.stage_seconds import StageSeconds
from actors.engine.calls.call_arguments import DecodedSample, check_images, check_steps, pipeline_arguments
from actors.engine.calls.chains import combined_verdict, decoded_images
from actors.engine.calls.decode_ahead import DecodeAhead, Decoding
from actors.engine.calls.outputs import ImageOutput, PendingOutputs, pending_outputs
from actors.engine.calls.prompt_reader import check_texts
from actors.engine.calls.safety_checks import MODULE, Check, SafetyChecks
from actors.engine.cohorts import Cohort
from actors.engine.compiling.compiler import Compiler
from actors.engine.engine import Generated
from actors.engine.pipelines.loaded_model import LoadedModel
from actors.engine.quirks.async_transfers import transfers_in_background
from actors.engine.quirks.host_schedules import keep_on_host
from actors.engine.quirks.torch_errors import ends_the_run, problem_of
from actors.engine.samples import Sample
from actors.images.encoding import Pixels
from schemas.errors import RowError
from schemas.spec.job_spec import BatchingSpec
from schemas.systems.adapter_weights import parse_weights
from schemas.systems.control_parameters import controls_of
from schemas.systems.image_prompts import IMAGE_PROMPT, image_prompt_of

logger = logging.getLogger(__name__)

MAX_ARRIVING = 8
"""The most calls whose outputs may be on their way from the device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _CallResult:
    """What a cohort's call returned."""

    outputs: PendingOutputs
    judged: PendingOutputs | None
    """The images that the safety checker judges; None without a checker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortCall:
    """A plain diffusers call for a cohort, or for those of its samples that are left."""

    model: LoadedModel
    cohort: Cohort
    decoded: Sequence[DecodedSample]
    exact: bool
    """Whether the result must be the one of a plain diffusers call, to the bit, also on a GPU."""
    loras: Mapping[str, float]
    """The weight of each LoRA that changes the call's modules, by its name in the spec."""

    @property
    def rows(self) -> int:
        """How many rows of a batch the call takes."""
        return len(self.decoded)

    def __call__(self) -> _CallResult:
        with self.model.with_loras(self.loras, alone=self.exact):
            return self._call()

    def _call(self) -> _CallResult:
        parameters = self.cohort.parameters
        scheduler, options = parameters.get("scheduler"), parameters.get("scheduler_options")
        pipeline = self.model.pipeline(
            self.cohort.system,
            str(scheduler) if scheduler else None,
            str(options) if options else None,
            [control.controlnet for control in controls_of(parameters)],
        )
        check_steps(self.cohort, pipeline)
        if not self.exact:
            keep_on_host(pipeline.scheduler)
        pictures = [images[IMAGE_PROMPT] for _, images in self.decoded if IMAGE_PROMPT in images]
        prompted = self.model.image_prompted(
            self, pipeline, image_prompt_of(parameters), pictures, alone=self.exact
        )
        with prompted as prompts:
            output = pipeline(**pipeline_arguments(self.cohort, self.decoded, pipeline), **prompts)
        outputs = pending_outputs(output, gives_latents=self.cohort.passes_latents_on)
        judged = None if self.model.safety_checker is None else outputs
        if judged and self.cohort.passes_latents_on:
            # Latents that go on are decoded for the checker, because the next model may have none.
            images = decoded_images(pipeline, output.images)
            judged = pending_outputs(SimpleNamespace(images=images), gives_latents=False)
        return _CallResult(outputs=outputs, judged=judged)

    def halves(self) -> Iterator["CohortCall"]:
        """Two calls, each for one half of the samples."""
        middle = len(self.decoded) // 2
        for decoded in (self.decoded[:middle], self.decoded[middle:]):
            yield replace(self, decoded=decoded)


_PHASES = {
    Stage.ENCODE: "encoding prompts",
    Stage.CONTROL: "denoising",
    Stage.DENOISE: "denoising",
    Stage.DECODE: "decoding",
}
"""What goes on in each stage, in words for people."""


class CohortRunner:
    """Generates the images of one model's cohorts; it is used for one run."""

    def __init__(
        self,
        model: LoadedModel,
        cohorts: DecodeAhead,
        batching: BatchingSpec,
        *,
        exact: bool,
        compiler: Compiler | None = None,
    ) -> None:
        """`exact`: whether nothing is merged, and nothing compiled."""
        self._model = model
        self._cohorts = cohorts
        self._exact = exact
        points = () if exact else [*model.merge_points()]
        ladder: Sequence[int] = ()
        if compiler:
            points, ladder = [*compiler.compiled(points)], batching.padded_images
        self._batcher: Batcher[CohortCall] = Batcher(points, batching.max_batch_rows, ladder, model.device)
        self._waiting: deque[CohortCall] = deque()
        """Calls that come next: a new one, or the halves of one that failed."""
        self._failed: deque[Generated] = deque()
        self._arriving: deque[tuple[CohortCall, PendingOutputs, Check | None]] = deque()
        """Calls whose outputs are on their way from the device, or being judged."""
        self._checks: SafetyChecks | None = None
        if model.safety_checker is not None:
            max_rows = 1 if exact else batching.max_batch_rows
            self._checks = SafetyChecks(model.safety_checker, model.device, cohorts.decoders, max_rows)

    @property
    def counts(self) -> dict[str, CallCount]:
        """The counts of each merge point and of the safety checker, by their names."""
        return self._batcher.counts | ({MODULE: self._checks.count} if self._checks else {})

    @property
    def phase(self) -> str:
        """The stage of the module that runs or ran last, for people. Any thread may ask."""
        stage = self._batcher.stage
        return "generating" if stage is None else _PHASES[stage]

    @property
    def seconds(self) -> StageSeconds:
        """How long the stages that run once for each image took; nothing of `exact` calls."""
        return self._batcher.seconds

    @torch.inference_mode()
    def run(self) -> Iterator[Generated]:
        """Yield the result of every sample of the cohorts."""
        with nullcontext() if self._exact else transfers_in_background(self._model.device):
            for outcome in self._outcomes():
                self._take(outcome)
                yield from self._finished(MAX_ARRIVING)
            yield from self._finished(0)

    def _outcomes(self) -> Iterator[Outcome[CohortCall]]:
        return one_by_one(self._next) if self._exact else self._batcher.run(self._next)

    def _next(self) -> CohortCall | None:
        """The next call, for those samples that can be generated; None if there is no call for now."""
        while not self._waiting:
            decoding = self._cohorts.next()
            if decoding is None:
                return None
            fit = self._fit(decoding)
            if fit:
                self._waiting.append(
                    CohortCall(
                        model=self._model,
                        cohort=decoding.cohort,
                        decoded=fit,
                        exact=self._exact,
                        loras=parse_weights(str(decoding.cohort.parameters.get("loras") or "")),
                    )
                )
        return self._waiting.popleft()

    def _fit(self, decoding: Decoding) -> list[DecodedSample]:
        """The samples whose images and texts can be used; the others fail."""
        fit: list[DecodedSample] = []
        for sample, futures in decoding.samples:
            try:
                images = {field: future.result() for field, future in futures.items()}
                check_images(sample, images)
                check_texts(sample)
                fit.append((sample, images))
            except RowError as problem:
                self._failed.append(_failure(sample, problem))
        return fit

    def _take(self, outcome: Outcome[CohortCall]) -> None:
        """Take in a call's outcome.

        A failed call is repeated in halves, so that one bad row, or a batch that is too large, does not cost
        other rows their images.
        """
        call, error = outcome.call, outcome.error
        if error is None:
            result: _CallResult = outcome.value
            check = self._checks.add(result.judged) if self._checks and result.judged else None
            self._arriving.append((call, result.outputs, check))
        elif isinstance(error, RowError) or len(call.decoded) == 1:
            problem = error if isinstance(error, RowError) else problem_of(error)
            self._failed.extend(_failure(sample, problem) for sample, _ in call.decoded)
        else:
            logger.warning("a call for %d images failed: %s", len(call.decoded), error)
            self._waiting.extendleft(reversed([*call.halves()]))

    def _finished(self, max_arriving: int) -> Iterator[Generated]:
        """Yield the results that are ready.

        Waits for more while the outputs of over `max_arriving` calls are on their way.
        """
        while self._failed:
            yield self._failed.popleft()
        if self._checks:
            self._checks.advance(max_arriving)
        while self._arriving and self._is_due(*self._arriving[0][1:], max_arriving):
            call, outputs, check = self._arriving.popleft()
            flags: Sequence[Any] = check.verdicts() if check else [None] * call.rows
            for decoded, output, flag in zip(call.decoded, outputs.get(), flags, strict=True):
                if isinstance(flag, Exception):
                    yield _failure(decoded[0], problem_of(flag))
                else:
                    yield _generated(decoded, output, flag)

    def _is_due(self, outputs: PendingOutputs, check: Check | None, max_arriving: int) -> bool:
        """Whether the first of the results is ready, or has to be waited for."""
        if check is not None:
            return check.ready or not max_arriving
        return outputs.ready or len(self._arriving) > max_arriving


def one_by_one(next_call: Callable[[], CohortCall | None]) -> Iterator[Outcome[CohortCall]]:
    """The outcomes of calls that run one after the other, as plain diffusers runs them."""
    while call := next_call():
        try:
            outcome = Outcome(call=call, value=call())
        except Exception as error:
            if ends_the_run(error):
                raise
            outcome = Outcome(call=call, error=error)
        yield outcome


def _generated(decoded: DecodedSample, output: ImageOutput, nsfw: bool | None) -> Generated:
    sample, images = decoded
    if not output.finite:
        message = "the model gave NaN or infinite pixels; try dtype: float32 or another scheduler"
        return _failure(sample, RowError("nonfinite_image", message))
    if output.pixels is not None and _is_constant(output.pixels) and not _begins_constant(images):
        color = tuple(output.pixels[0, 0].tolist())
        message = f"the model gave RGB {color} in every pixel; try dtype: float32 or another guidance_scale"
        return _failure(sample, RowError("constant_image", message))
    return Generated(
        sample=sample,
        pixels=output.pixels,
        latents=output.latents,
        depth=output.depth,
        nsfw=combined_verdict(sample.nsfw, nsfw),
    )


def _is_constant(pixels: Pixels) -> bool:
    # For most images the first line is enough to tell.
    return bool((pixels[0] == pixels[0, 0]).all() and (pixels == pixels[0, 0]).all())


def _begins_constant(images: Mapping[str, Image.Image | torch.Tensor]) -> bool:
    """Whether the input image has one colour only: then one colour may well be the right result."""
    image = images.get("image")
    return isinstance(image, Image.Image) and _is_constant(np.asarray(image))


def _failure(sample: Sample, problem: RowError) -> Generated:
    if sample.opened.route.then:
        problem = RowError(problem.code, f"step {sample.step + 1} ({sample.route.name}): {problem.message}")
    return Generated(sample=sample, pixels=None, nsfw=None, problem=problem)
