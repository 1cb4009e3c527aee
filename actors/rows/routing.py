"""The task-routing stage: from a row's `task` and `model` to the pipeline that makes it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.errors import RowError
from schemas.job import NO_MODEL
from schemas.spec.job_spec import JobSpec
from schemas.systems.model_card import ModelCard
from schemas.systems.parameters import ParameterValue, with_preset
from schemas.systems.system_table import SD_LATENTS, System, find_system, tasks_of
from schemas.wording.nearest import nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """Where rows with one pair of `task` and `model` go."""

    route: str
    """The route's name, or what the row called it where there is no such route."""
    model: str
    """The model's name; NO_MODEL where no model can take these rows."""
    system: System | None
    """What makes these rows; None exactly when `problem` says why not."""
    defaults: Mapping[str, ParameterValue | None]
    """The system's parameters: the route's values over the published ones over the checkpoint's."""
    problem: RowError | None = None
    then: "tuple[Routed, ...]" = ()
    """The steps that follow, each with its route's own values."""
    keep_steps: bool = False
    """Whether the pictures of all steps are kept, not the last one's alone."""

    def needed_images(self) -> dict[str, str]:
        """Fields that a row must bring: what its first step needs, and what no step gives to a later one.

        With what needs each: `the task inpaint`, or `step 2 (inpaint)`.
        """
        found: dict[str, str] = {}
        for place, system, given in self._steps():
            who = f"step {place} ({system.task})" if self.then else f"the task {system.task}"
            found |= {name: who for name in system.images if name not in given and name not in found}
        return found

    def optional_images(self) -> list[str]:
        """Fields that a step reads where the row brings them, and the step before has not made."""
        return [
            name for _, system, given in self._steps() for name in system.optional_images if name not in given
        ]

    def _steps(self) -> Iterator[tuple[int, System, set[str]]]:
        """Each step's place, from 1, its system, and the fields that the step before it gives."""
        given: set[str] = set()
        for place, step in enumerate((self, *self.then), 1):
            if step.system is not None:
                yield place, step.system, given
                given = {"image", "depth_map"} if step.system.gives_depth else {"image"}

    def growth(self) -> int:
        """How many times wider than the first step's picture the widest is that a later step begins with."""
        scales = [step.system.scale for step in (self, *self.then) if step.system is not None]
        return math.prod(scales[:-1])


def hands_on_latents(step: Routed, following: Routed) -> bool:
    """Whether `following` takes the latents of `step` as they are: no decoding, no loss."""
    if step.system is None or following.system is None or step.system.gives_depth:
        return False
    if following.defaults.get("denoising_start") is not None:
        return "denoising_end" in step.system.defaults  # SDXL's base, to its refiner
    gives = step.system.gives_latents and step.system.family in SD_LATENTS
    return gives and following.system.task == "latent_upscale"


class Router:
    """Resolves each pair of task and model."""

    def __init__(self, spec: JobSpec, models: Mapping[str, ModelCard]) -> None:
        self._spec = spec
        self._models = models
        self._known: dict[tuple[str | None, str | None], Routed] = {}
        self.max_pixels = spec.input.max_pixels
        """What a model is given to work on at most."""

    def resolve(self, task: str | None, model: str | None) -> Routed:
        """Where a row with these two column values goes; null or empty means the default."""
        pair = (task or None, model or None)
        routed = self._known.get(pair) or self._resolve(*pair)
        if routed.problem is None:  # Of names that go nowhere there may be as many as rows.
            self._known[pair] = routed
        return routed

    def resolve_batch(
        self, tasks: pa.Array | None, models: pa.Array | None, num_rows: int
    ) -> tuple[npt.NDArray[np.intp], list[Routed]]:
        """For each row a position in the list of places to go."""
        task_codes, task_names = _codes(tasks, num_rows)
        model_codes, model_names = _codes(models, num_rows)
        pairs, positions = np.unique(task_codes * len(model_names) + model_codes, return_inverse=True)
        routed = [
            self.resolve(task_names[pair // len(model_names)], model_names[pair % len(model_names)])
            for pair in pairs.tolist()
        ]
        return positions, routed

    def _resolve(self, task: str | None, model: str | None) -> Routed:
        name = task or self._spec.fallback_route()
        if name is None:
            return _nowhere("", "missing_task", f"the row has no task; routes are {self._names()}")
        route = self._spec.routes.get(name)
        if route is None:
            hint = nearest(name, self._spec.routes)
            return _nowhere(name, "unknown_task", f"`{name}` is no route{hint}; routes are {self._names()}")
        model = model or route.model
        if model not in self._models:
            hint = nearest(model, self._models)
            known = ", ".join(self._models)
            return _nowhere(name, "unknown_model", f"`{model}` is no model{hint}; models are {known}")
        generation_task = self._spec.task_of(name)
        card = self._models[model]
        system = find_system(card.family, generation_task)
        if system is None:
            return _nowhere(name, "unsupported_task", unsupported_task(model, generation_task, self._models))
        published: dict[str, ParameterValue | None] = {
            "height": card.height,
            "width": card.width,
            "scheduler": card.scheduler,
        }
        defaults = {
            name: published.get(name) if value is None else value for name, value in system.defaults.items()
        }
        given = with_preset(route.set_parameters())
        defaults |= {name: value for name, value in given.items() if name in defaults}
        then = tuple(self.resolve(step, None) for step in route.then)
        return Routed(
            route=name, model=model, system=system, defaults=defaults, then=then, keep_steps=route.keep_steps
        )

    def _names(self) -> str:
        return ", ".join(self._spec.routes)


def unsupported_task(model: str, task: str, models: Mapping[str, ModelCard]) -> str:
    """Why this model cannot do this task, and which of the job's models could."""
    family = models[model].family
    able = [name for name, card in models.items() if find_system(card.family, task)]
    could = f"; models here that can: {', '.join(able)}" if able else "; no model of this job can"
    return f"model `{model}` ({family}) does {', '.join(tasks_of(family))}, not {task}{could}"


def _nowhere(route: str, code: str, message: str) -> Routed:
    problem = RowError(code, message)
    return Routed(route=route, model=NO_MODEL, system=None, defaults={}, problem=problem)


def _codes(array: pa.Array | None, num_rows: int) -> tuple[npt.NDArray[np.int64], list[str | None]]:
    if array is None:
        return np.zeros(num_rows, dtype=np.int64), [None]
    encoded = array.dictionary_encode()
    names: list[str | None] = [*encoded.dictionary.to_pylist(), None]
    codes = encoded.indices.fill_null(len(names) - 1).to_numpy(zero_copy_only=False)
    return codes.astype(np.int64), names
