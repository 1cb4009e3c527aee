"""What darkroom calls of Ray, in simulated time: each actor is a process, and each of its calls a thread.

The real pool and the real layout run on it, many hours of them in a second.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from ray.exceptions import RayActorError, RayTaskError

from jobs.fleet import cluster, layout, machines, pool
from tests.support.simulation.simulated_time import Clock, Process, Thread, ViolationError


class Ref:
    """What a call of an actor returns: the place of its answer."""

    def __init__(self) -> None:
        self.settled = False
        self._answer: Any = None
        self._error: Exception | None = None

    def settle(self, answer: Any = None, error: Exception | None = None) -> None:
        """Set the answer, or the error that `get` raises; only the first one counts."""
        if not self.settled:
            self.settled, self._answer, self._error = True, answer, error

    def get(self) -> Any:
        """The answer."""
        assert self.settled, "only settled calls are asked for"
        if self._error:
            raise self._error
        return self._answer


class Actor:
    """The handle of an actor: `actor.run.remote(shard)` calls a method of its worker in a thread."""

    def __init__(self, ray: "FakeRay", name: str, options: dict[str, Any], job: Any) -> None:
        self._ray = ray
        self._refs: list[Ref] = []
        self.options = options
        """The options with which Ray was told to start it."""
        self.job = job
        """The first argument of its constructor."""
        self.machine = ray.place(options)
        """The machine on which it runs."""
        self.process = Process(
            ray.clock, name, when_it_dies=lambda _: ray.clock.after(ray.news_s(), self._fail)
        )
        self.error: Exception | None = None
        """What its calls raise after its death; None: an error that blames it."""
        self.worker = ray.build(self)

    def __getattr__(self, name: str) -> "_Method":
        return _Method(self, name)

    def die(self, error: Exception | None = None) -> None:
        """End its process, and let its calls raise this error."""
        self.error = error
        self.process.kill()

    def call(self, name: str, arguments: tuple[Any, ...]) -> Ref:
        """Start the method in a thread of its own."""
        ref = Ref()
        self._refs.append(ref)
        if self.process.alive and self.process.heard:
            self.process.start(self._answer, ref, name, arguments)
        else:
            self._fail_soon()
        return ref

    def _answer(self, ref: Ref, name: str, arguments: tuple[Any, ...]) -> None:
        try:
            answer, error = getattr(self.worker, name)(*arguments), None
        except ViolationError:
            raise
        except Exception as cause:  # noqa: BLE001 - like Ray, whatever it is
            # As Ray does it; with the address and the title, its constructor does not look for them.
            task_error = RayTaskError(name, "", cause, proctitle=self.process.name, ip="127.0.0.1")
            answer, error = None, task_error.as_instanceof_cause()
        if self.process.heard:
            ref.settle(answer, error)
            self._refs.remove(ref)
            self._ray.wake()

    def _fail_soon(self) -> None:
        self._ray.clock.after(self._ray.news_s(), self._fail)

    def _fail(self) -> None:
        """Let all calls without an answer fail, since its process is dead or out of reach."""
        error = self.error or self._ray.error_of_death()
        for ref in self._refs:
            ref.settle(error=error)
        self._refs.clear()
        self._ray.wake()


class _Method:
    def __init__(self, actor: Actor, name: str) -> None:
        self._actor = actor
        self._name = name

    def remote(self, *arguments: Any) -> Ref:
        return self._actor.call(self._name, arguments)


class _ActorClass:
    """What `ray.remote(WorkerProcess)` returns."""

    def __init__(self, ray: "FakeRay") -> None:
        self._ray = ray
        self._options: dict[str, Any] = {}

    def options(self, **options: Any) -> "_ActorClass":
        self._options = options
        return self

    def remote(self, job: Any, **named: Any) -> Actor:
        return self._ray.start(self._options, job)


class FakeRay:
    """The functions of the module `ray` that darkroom calls, and `time.monotonic`."""

    def __init__(
        self, clock: Clock, build: Callable[[Actor], Any], *, num_cpus: int = 1, num_gpus: int = 0
    ) -> None:
        """`build` returns the object whose methods an actor's calls run; it stands for the WorkerProcess."""
        self.clock = clock
        self.build = build
        self.machines = {"machine-0": {"CPU": num_cpus, "GPU": num_gpus}}
        """The resources of each machine of the cluster, by name."""
        self.labels: dict[str, dict[str, str]] = {}
        """The labels of machines that have some, by the machine's name."""
        self.cluster_config: Any = None
        """What the autoscaler has told Ray of the machines that it can start."""
        state = SimpleNamespace(get_cluster_config=lambda: self.cluster_config)
        self._private = SimpleNamespace(state=SimpleNamespace(state=state))
        self.dead_machines: list[dict[str, int]] = []
        """Those of machines that are gone; Ray names them for ever."""
        self.actors: list[Actor] = []
        """All actors that were ever started."""
        self.name: Callable[[], str] = lambda: f"actor-{len(self.actors)}"
        self.news_s: Callable[[], float] = lambda: 0.0
        """Draws how long it takes until Ray knows of a death, in seconds."""
        self.error_of_death: Callable[[], Exception] = lambda: RayActorError(error_msg="The actor died.")
        self.obeys: Callable[[], bool] = lambda: True
        """Draws whether an actor ends when it is killed."""
        self.shortest_wait_s = 0.0
        """A `wait` for the first settled call takes at least this long if there is none."""
        self.jump_s = 0.0
        """How far the driver's clock has jumped ahead, as when a laptop sleeps."""
        self._waiting: list[Thread] = []

    def monotonic(self) -> float:
        """The driver's clock, in seconds."""
        return self.clock.now_s + self.jump_s

    def is_initialized(self) -> bool:
        return True

    def put(self, value: Any) -> Any:
        return value

    def remote(self, worker_class: type) -> _ActorClass:
        return _ActorClass(self)

    def place(self, options: dict[str, Any]) -> str:
        """The machine for an actor: the allowed one with the fewest actors for its CPUs."""
        selector = (options.get("label_selector") or {}).get(pool.NODE_ID, "!in()")
        left_out = selector.removeprefix("!in(").removesuffix(")").split(",")
        used = Counter(actor.machine for actor in self.actors if actor.process.alive)
        allowed = [name for name in self.machines if name not in left_out]
        return min(allowed, key=lambda name: used[name] / max(self.machines[name]["CPU"], 1))

    def start(self, options: dict[str, Any], job: Any) -> Actor:
        """Start an actor."""
        actor = Actor(self, self.name(), options, job)
        self.actors.append(actor)
        return actor

    def wait(self, refs: Sequence[Ref], *, num_returns: int, timeout: float) -> tuple[list[Ref], list[Ref]]:
        """The calls that are settled once there are `num_returns` of them or time is up, and the others."""
        if not refs:
            raise ViolationError("the driver waits for no call: it would spin")
        thread = self.clock.thread
        shortest_s = self.shortest_wait_s if num_returns == 1 else 0.0
        give_up_s = self.clock.now_s + max(timeout, shortest_s)
        while sum(ref.settled for ref in refs) < num_returns and self.clock.now_s < give_up_s:
            self._waiting.append(thread)
            try:
                thread.sleep(give_up_s - self.clock.now_s)
            finally:
                self._waiting.remove(thread)
        settled = [ref for ref in refs if ref.settled][:num_returns]
        return settled, [ref for ref in refs if ref not in settled]

    def wake(self) -> None:
        """Let the drivers look at their calls."""
        for thread in self._waiting:
            thread.wake()

    def get(self, ref: Ref) -> Any:
        return ref.get()

    def kill(self, actor: Actor, *, no_restart: bool) -> None:
        if self.obeys():
            actor.process.kill()

    def cluster_resources(self) -> dict[str, float]:
        machines = self.machines.values()
        return {name: sum(machine[name] for machine in machines) for name in ("CPU", "GPU")}

    def available_resources(self) -> dict[str, float]:
        num_alive = sum(actor.process.alive for actor in self.actors)
        return {name: max(0, total - num_alive) for name, total in self.cluster_resources().items()}

    def sleep(self, seconds: float) -> None:
        """Let time pass for the driver."""
        self.clock.thread.sleep(seconds)

    def nodes(self) -> list[dict[str, Any]]:
        machines = [(name, True, machine) for name, machine in self.machines.items()]
        machines += [("", False, machine) for machine in self.dead_machines]
        return [
            {"NodeID": name, "Alive": alive, "Resources": machine, "Labels": self.labels.get(name, {})}
            for name, alive, machine in machines
        ]


@contextmanager
def installed(fake: FakeRay) -> Iterator[FakeRay]:
    """Let darkroom's pool and layout use this instead of Ray and the clock within the block."""
    with (
        patch.object(pool, "ray", fake),
        patch.object(pool, "time", fake),
        patch.object(cluster, "ray", fake),
        patch.object(layout, "ray", fake),
        patch.object(machines, "ray", fake),
    ):
        yield fake
