"""Cohorts of one model to pictures: diffusers calls run side by side, and split when they fail."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from actors.engine.batching.batcher import Batcher, Call, Outcome
from actors.engine.batching.merge_points import entry_points
from actors.engine.batching.merged_modules import CallCount
from actors.engine.calls.call_arguments import Decoded, arguments, check_images, check_steps
from actors.engine.calls.chains import combined, decode_latents
from actors.engine.calls.decode_ahead import DecodeAhead, Decoding
from actors.engine.calls.outputs import ImageOutput, PendingOutputs, pending_outputs
from actors.engine.calls.prompt_reader import check_texts
from actors.engine.cohorts import Cohort
from actors.engine.engine import Generated
from actors.engine.pipelines.loaded_model import LoadedModel
from actors.engine.quirks.async_transfers import transfers_in_background
from actors.engine.quirks.compiling import compile_blocks, is_compiler_error, ladder
from actors.engine.quirks.host_timesteps import keep_on_host
from actors.engine.quirks.torch_errors import is_fatal, problem_of
from actors.engine.samples import Sample
from actors.images.encoding import Pixels
from schemas.errors import DarkroomError, RowError, SpecError
from schemas.spec.job_spec import BatchingSpec

logger = logging.getLogger(__name__)

MAX_ARRIVING = 8
"""Calls whose pictures are on their way from the device, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """What a cohort's call gave."""

    pictures: PendingOutputs
    flags: Sequence[bool | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortCall:
    """A plain diffusers call for a cohort, or for those of its samples that are left."""

    model: LoadedModel
    cohort: Cohort
    decoded: Sequence[Decoded]
    exact: bool
    """Whether it is to be what diffusers does by itself, to the bit, also on a GPU."""

    def __call__(self) -> _Made:
        parameters = self.cohort.parameters
        scheduler, options = parameters.get("scheduler"), parameters.get("scheduler_options")
        pipeline = self.model.pipeline(
            self.cohort.system, str(scheduler) if scheduler else None, str(options) if options else None
        )
        check_steps(self.cohort, pipeline)
        if not self.exact:
            keep_on_host(pipeline.scheduler)
        output = pipeline(**arguments(self.cohort, self.decoded, pipeline))
        pictures = pending_outputs(output, gives_latents=self.cohort.gives_latents)
        return _Made(pictures=pictures, flags=self._flags(pictures, pipeline))

    def _flags(self, pictures: PendingOutputs, pipeline: Any) -> Sequence[bool | None]:
        """The verdict on each picture; latents that go on are decoded for it, for the next model may have
        no checker."""
        checker = self.model.safety_checker
        if checker is None:
            return [None] * len(self.decoded)
        return checker.flags([_shown(picture, pipeline) for picture in pictures.get()])

    def halves(self) -> Iterator["CohortCall"]:
        """The same for one half of the samples and for the other."""
        middle = len(self.decoded) // 2
        for decoded in (self.decoded[:middle], self.decoded[middle:]):
            yield replace(self, decoded=decoded)


def _shown(picture: ImageOutput, pipeline: Any) -> Pixels:
    if picture.pixels is not None:
        return picture.pixels
    assert picture.latents is not None, "a picture has the one or the other"
    return decode_latents(pipeline, picture.latents)


class CohortRunner:
    """Makes the pictures of one model's cohorts. For one run."""

    def __init__(
        self, model: LoadedModel, cohorts: DecodeAhead, batching: BatchingSpec, *, exact: bool
    ) -> None:
        """`exact`: whether nothing is merged."""
        self._model = model
        self._cohorts = cohorts
        self._exact = exact
        sizes: Sequence[int] = ()
        if batching.compile and not exact:
            compile_blocks(model.components["unet"])
            sizes = ladder(batching.max_batch_rows)
        entries = () if self._exact else [*entry_points(model.components)]
        self._batcher: Batcher[_Made] = Batcher(entries, batching.max_batch_rows, sizes)
        self._again: deque[CohortCall] = deque()
        self._unfit: deque[Generated] = deque()
        self._arriving: deque[tuple[CohortCall, _Made]] = deque()

    @property
    def counts(self) -> dict[str, CallCount]:
        """What went through each of the model's modules."""
        return self._batcher.counts

    @torch.inference_mode()
    def run(self) -> Iterator[Generated]:
        """Every sample of the cohorts."""
        for outcome in self._outcomes():
            self._take(outcome)
            yield from self._there(MAX_ARRIVING)
        yield from self._there(0)

    def _outcomes(self) -> Iterator[Outcome[_Made]]:
        if self._exact:
            yield from one_by_one(self._next)
            return
        with transfers_in_background(self._model.device):
            yield from self._batcher.run(self._next)

    def _next(self) -> Call[_Made] | None:
        """The next call whose samples are fit for it."""
        while not self._again:
            decoding = self._cohorts.next()
            if decoding is None:
                return None
            fit = self._fit(decoding)
            if fit:
                self._again.append(
                    CohortCall(model=self._model, cohort=decoding.cohort, decoded=fit, exact=self._exact)
                )
        make = self._again.popleft()
        return Call(make=make, rows=len(make.decoded))

    def _fit(self, decoding: Decoding) -> list[Decoded]:
        fit: list[Decoded] = []
        for sample, pictures in decoding.samples:
            try:
                ready = {field: future.result() for field, future in pictures.items()}
                check_images(sample, ready)
                check_texts(sample)
                fit.append((sample, ready))
            except RowError as problem:
                self._unfit.append(_failed(sample, problem))
        return fit

    def _take(self, outcome: Outcome[_Made]) -> None:
        """A failed call is made again in halves: one bad row or too large a batch costs no other row its
        picture."""
        call, error = outcome.call.make, outcome.error
        assert isinstance(call, CohortCall)
        if error is None:
            assert outcome.value is not None
            self._arriving.append((call, outcome.value))
        elif is_compiler_error(error):
            raise SpecError(f"batching.compile: torch.compile does not work here: {error}") from error
        elif isinstance(error, DarkroomError) and not isinstance(error, RowError):
            raise error
        elif isinstance(error, RowError) or len(call.decoded) == 1:
            problem = error if isinstance(error, RowError) else problem_of(error)
            self._unfit.extend(_failed(sample, problem) for sample, _ in call.decoded)
        else:
            logger.warning("a call for %d pictures failed: %s", len(call.decoded), error)
            self._again.extendleft(reversed([*call.halves()]))

    def _there(self, max_arriving: int) -> Iterator[Generated]:
        """What is ready, or has to be waited for now."""
        while self._unfit:
            yield self._unfit.popleft()
        while self._arriving and (len(self._arriving) > max_arriving or self._arriving[0][1].pictures.ready):
            call, made = self._arriving.popleft()
            for decoded, picture, flag in zip(call.decoded, made.pictures.get(), made.flags, strict=True):
                yield _result(decoded, picture, flag)


def one_by_one(next_call: Callable[[], Call[_Made] | None]) -> Iterator[Outcome[_Made]]:
    """Calls as plain diffusers makes them, one after the other."""
    while call := next_call():
        try:
            outcome = Outcome(call=call, value=call.make())
        except Exception as error:
            if is_fatal(error):
                raise
            outcome = Outcome(call=call, error=error)
        yield outcome


def _result(decoded: Decoded, picture: ImageOutput, nsfw: bool | None) -> Generated:
    sample, given = decoded
    if not picture.finite:
        said = "the model gave NaN or infinite pixels; try dtype: float32 or another scheduler"
        return _failed(sample, RowError("nonfinite_image", said))
    if picture.pixels is not None and _is_constant(picture.pixels) and not _begins_constant(given):
        color = tuple(picture.pixels[0, 0].tolist())
        said = f"the model gave RGB {color} in every pixel; try dtype: float32 or another guidance_scale"
        return _failed(sample, RowError("constant_image", said))
    return Generated(
        sample=sample,
        pixels=picture.pixels,
        latents=picture.latents,
        depth=picture.depth,
        nsfw=combined(sample.nsfw, nsfw),
    )


def _is_constant(pixels: Pixels) -> bool:
    # The first line tells most pictures, at once.
    return bool((pixels[0] == pixels[0, 0]).all() and (pixels == pixels[0, 0]).all())


def _begins_constant(given: Mapping[str, Image.Image | torch.Tensor]) -> bool:
    """Whether the row handed in one colour: then one colour may well be right."""
    image = given.get("image")
    return isinstance(image, Image.Image) and _is_constant(np.asarray(image))


def _failed(sample: Sample, problem: RowError) -> Generated:
    if sample.opened.row.routed.then:
        problem = RowError(problem.code, f"step {sample.step + 1} ({sample.routed.route}): {problem.message}")
    return Generated(sample=sample, pixels=None, nsfw=None, problem=problem)
