"""The safety checker's verdicts on finished images, for which neither the host nor the device waits."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any

import torch

from actors.engine.batching.batch_policy import Stage
from actors.engine.batching.merged_modules import CallCount, MergedModule, MergePoint, Raised, Request
from actors.engine.calls.outputs import PendingOutputs, begin_copies
from actors.engine.pipelines.safety_checker import SafetyChecker
from actors.images.encoding import Pixels

MODULE = "safety_checker.vision_model"
"""The name under which the checker's work is counted."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Batch:
    """Images that were judged together."""

    checker: SafetyChecker
    distances: torch.Tensor
    """(N, concepts), in the host's memory."""
    copied: torch.cuda.Event | None
    """The CUDA event at the end of the copy; None if nothing has to be copied."""


@dataclass(slots=True, kw_only=True, eq=False)
class Check:
    """The check of one call's images."""

    images: PendingOutputs
    rows: int
    features: Future[torch.Tensor] | None = None
    """What the checker reads of the images; None until they have come from the device."""
    batch: _Batch | None = None
    """None until the checker has begun with them."""
    answers: list[int | Exception] = field(default_factory=list)
    """For each image its row in the batch, or the error with which the checker failed."""

    @property
    def ready(self) -> bool:
        """Whether `verdicts` returns at once."""
        if self.batch is None:
            return False
        return self.batch.copied is None or bool(self.batch.copied.query())  # type: ignore[no-untyped-call]

    def verdicts(self) -> list[bool | Exception]:
        """For each image whether it is flagged, or why the checker failed; waits for the copy."""
        assert self.batch is not None, "the checker has begun with every image at the end"
        if self.batch.copied is not None:
            self.batch.copied.synchronize()
        flags = self.batch.checker.flags(self.batch.distances.numpy())
        return [answer if isinstance(answer, Exception) else flags[answer] for answer in self.answers]


class SafetyChecks:
    """Judges the images of calls in the order in which they ended.

    Batches depend on that order alone, and not on when an image has come from the device or been prepared.
    """

    def __init__(
        self, checker: SafetyChecker, device: torch.device, decoders: Executor, max_rows: int
    ) -> None:
        """`max_rows`: the most images that the checker judges together; a call may have more."""
        self._checker = checker
        self._device = device
        self._decoders = decoders
        self._max_rows = max_rows
        vision_model = checker.checker.vision_model
        self._module = MergedModule(MergePoint(name=MODULE, module=vision_model, stage=Stage.DECODE))
        self._arriving: deque[Check] = deque()
        self._filling: list[Check] = []
        """The checks of the next batch, whose images are being prepared."""
        self._full: deque[list[Check]] = deque()

    @property
    def count(self) -> CallCount:
        """How much work the checker had."""
        return self._module.count

    def add(self, images: PendingOutputs) -> Check:
        """The check of a call's images, to be begun by `advance`."""
        check = Check(images=images, rows=len(images.finite))
        self._arriving.append(check)
        return check

    def advance(self, max_arriving: int) -> None:
        """Prepare images that have come from the device, and judge those that are prepared.

        Waits only while the images of over `max_arriving` calls are on their way; with 0, all checks begin.
        """
        while self._arriving and (len(self._arriving) > max_arriving or self._arriving[0].images.ready):
            self._prepare(self._arriving.popleft())
        if not max_arriving and self._filling:
            self._close()
        while self._full and (not max_arriving or len(self._full) > 1 or _are_prepared(self._full[0])):
            self._judge(self._full.popleft())

    def _prepare(self, check: Check) -> None:
        images: list[Pixels] = [image.pixels for image in check.images.get() if image.pixels is not None]
        check.features = self._decoders.submit(self._checker.features, images)
        if self._filling and sum(each.rows for each in self._filling) + check.rows > self._max_rows:
            self._close()
        self._filling.append(check)
        if sum(each.rows for each in self._filling) >= self._max_rows:
            self._close()

    def _close(self) -> None:
        self._full.append(self._filling)
        self._filling = []

    def _judge(self, checks: Sequence[Check]) -> None:
        """Begin with a batch of images; each image for which the checker fails has an error of its own."""
        requests: list[Request] = []
        for check in checks:
            assert check.features is not None, "a check is prepared before it is judged"
            error = check.features.exception()
            if isinstance(error, Exception):
                check.answers = [error] * check.rows
                continue
            for image in check.features.result().to(self._device).unbind():
                arguments = {"pixel_values": image[None]}
                requests.append(Request(arguments=arguments, rows=1, images=1, batch_key=MODULE))
        self._module.count.images += len(requests)
        answers = iter(self._module.answers(requests) if requests else ())
        pooled: list[torch.Tensor] = []
        for check in checks:
            for answer in [] if check.answers else [next(answers) for _ in range(check.rows)]:
                check.answers.append(answer.error if isinstance(answer, Raised) else len(pooled))
                pooled += [] if isinstance(answer, Raised) else [answer[1]]
        batch = self._begin(pooled)
        for check in checks:
            check.batch = batch

    def _begin(self, pooled: list[torch.Tensor]) -> _Batch:
        values: dict[str, Any] = {"distances": torch.zeros(0, 0)}
        copied = None
        if pooled:
            values["distances"] = self._checker.distances(torch.cat(pooled))
            copied = begin_copies(values, self._device)
        return _Batch(checker=self._checker, distances=values["distances"], copied=copied)


def _are_prepared(checks: Sequence[Check]) -> bool:
    return all(check.features is not None and check.features.done() for check in checks)
