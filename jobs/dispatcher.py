"""Which shard goes to whom next: pure state, no Ray, no clock, no I/O."""

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from schemas.job import Shard

SHARDS_IN_FLIGHT = 2
"""Per worker: while one is on the device, the next is read and the one before is written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Abandoned:
    """A shard that was given up on in this run."""

    shard: Shard
    reason: str


class _Queue:
    """One model's shards: those that came back first, then the formula's."""

    def __init__(self, shards: Iterator[Shard], num_left: int) -> None:
        self._fresh = shards
        self._returned: deque[Shard] = deque()
        self.num_left = num_left

    def take(self) -> Shard:
        self.num_left -= 1
        return self._returned.popleft() if self._returned else next(self._fresh)

    def give_back(self, shard: Shard) -> None:
        self.num_left += 1
        self._returned.append(shard)


class Dispatcher:
    """Hands out shards so that a worker keeps the model it has loaded; counts attempts per shard."""

    def __init__(
        self, shards: Mapping[str, Iterator[Shard]], num_shards: Mapping[str, int], *, max_attempts: int
    ) -> None:
        """`shards`, and how many there are, by model."""
        self._queues = {model: _Queue(shards[model], num_shards[model]) for model in shards}
        self._max_attempts = max_attempts
        self._in_flight: dict[str, list[Shard]] = {}
        self._model_of: dict[str, str] = {}
        self._attempts: Counter[int] = Counter()
        self.abandoned: list[Abandoned] = []

    @property
    def num_waiting(self) -> int:
        """Shards that nobody works on."""
        return sum(queue.num_left for queue in self._queues.values())

    @property
    def num_in_flight(self) -> int:
        """Shards that some worker has."""
        return sum(len(shards) for shards in self._in_flight.values())

    @property
    def finished(self) -> bool:
        """Whether every shard is made or abandoned."""
        return not self.num_waiting and not self.num_in_flight

    def join(self, worker: str) -> None:
        """A worker is ready for work."""
        self._in_flight.setdefault(worker, [])

    def leave(self, worker: str) -> None:
        """A worker is gone for good, without fault of its shards: somebody else makes them."""
        for shard in self._in_flight.pop(worker, []):
            self._queues[shard.model].give_back(shard)
        self._model_of.pop(worker, None)

    def next_for(self, worker: str, loaded: Sequence[str] = ()) -> Shard | None:
        """A shard for this worker now, or None; `loaded` are the models in its memory, the latest last."""
        mine = self._in_flight[worker]
        if not self.num_waiting or len(mine) >= self._room(mine):
            return None
        model = self._choose(worker, loaded)
        if mine and mine[-1].model != model:
            return None  # two models in flight could push each other out of a small cache, shard by shard
        self._model_of[worker] = model
        shard = self._queues[model].take()
        mine.append(shard)
        return shard

    def finish(self, worker: str, shard: Shard) -> None:
        """The shard's part is committed."""
        self._in_flight[worker].remove(shard)

    def fail(self, worker: str, shard: Shard, reason: str) -> None:
        """The worker lives and could not make the shard."""
        self._in_flight[worker].remove(shard)
        self._charge(shard, reason)

    def lose(self, worker: str, reason: str) -> None:
        """The worker died. Only the shard it was at is charged; what it held ahead is not to blame."""
        shards = self._in_flight.pop(worker, [])
        self._model_of.pop(worker, None)
        for place, shard in enumerate(shards):
            if place == 0:
                self._charge(shard, reason)
            else:
                self._queues[shard.model].give_back(shard)

    def _charge(self, shard: Shard, reason: str) -> None:
        self._attempts[shard.index] += 1
        if self._attempts[shard.index] >= self._max_attempts:
            self.abandoned.append(Abandoned(shard=shard, reason=reason))
        else:
            self._queues[shard.model].give_back(shard)

    def _room(self, mine: list[Shard]) -> int:
        """In the last wave one at a time, so that no worker waits while another has two."""
        others = len(self._in_flight) - 1
        return SHARDS_IN_FLIGHT if not mine or self.num_waiting > others else 1

    def _choose(self, worker: str, loaded: Sequence[str]) -> str:
        waiting = {model: queue.num_left for model, queue in self._queues.items() if queue.num_left}
        held = [*loaded, *([self._model_of[worker]] if worker in self._model_of else [])]
        for model in reversed(held):
            if model in waiting:
                return model
        workers = Counter(self._model_of.values())
        return max(waiting, key=lambda model: (waiting[model] / (1 + workers[model]), model))
