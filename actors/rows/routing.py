"""The task-routing stage: it maps a row's `task` and `model` to the pipeline that generates the row."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actors.images.encoding import MAX_SIDES
from schemas.errors import RowError
from schemas.job import NO_MODEL
from schemas.spec.job_spec import JobSpec, Route
from schemas.systems.control_parameters import CONTROL_IMAGES, settled_controls
from schemas.systems.image_prompts import IMAGE_PROMPT, settled_image_prompt
from schemas.systems.model_card import AdapterFile, ControlNetCard, EmbeddingFile, IpAdapterCard, ModelCard
from schemas.systems.parameters import ParameterValue, with_preset
from schemas.systems.sampler_names import with_sampler
from schemas.systems.system_table import SD_LATENTS, System, find_system, tasks_of
from schemas.wording.nearest import did_you_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedRoute:
    """What generates the rows with one pair of `task` and `model`: a route, or one step of a chain."""

    name: str
    """The route's name."""
    model: str
    """The model's name."""
    system: System
    """The system that generates these rows."""
    defaults: Mapping[str, ParameterValue | None]
    """The system's parameters: the route's values over the published ones over the checkpoint's. For rows, a
    scheduler may still be a sampler's name; for a later step, it is a class."""
    then: "tuple[ResolvedRoute, ...]" = ()
    """The steps that follow, each with its route's own values."""
    loras: Mapping[str, AdapterFile] = field(default_factory=dict)
    """The model's LoRAs by name."""
    controlnets: Mapping[str, ControlNetCard] = field(default_factory=dict)
    """The model's ControlNets by name."""
    embeddings: Mapping[str, EmbeddingFile] = field(default_factory=dict)
    """The model's learned tokens."""
    ip_adapters: Mapping[str, IpAdapterCard] = field(default_factory=dict)
    """The model's IP-Adapters by name."""
    keep_steps: bool = False
    """Whether the images of all steps are stored, not only the last one's."""

    @property
    def steps(self) -> "tuple[ResolvedRoute, ...]":
        """This step and those that follow."""
        return (self, *self.then)

    def needed_images(self) -> dict[str, str]:
        """The image fields that a row must bring, each with what needs it.

        These are the fields that the first step needs and those that a later step needs and the step before
        it does not give. What needs a field reads `the task inpaint`, or `step 2 (inpaint)`.
        """
        needed: dict[str, str] = {}
        for number, (step, given) in enumerate(self._steps_with_given_fields(), 1):
            who = f"step {number} ({step.system.task})" if self.then else f"the task {step.system.task}"
            needed |= {name: who for name in step.system.images if name not in given and name not in needed}
        return needed

    def optional_images(self) -> list[str]:
        """The image fields that a step reads if the row has them and the step before does not give them.

        Those for ControlNets and IP-Adapters are among them if the step's model has such.
        """
        names = [
            name
            for step, given in self._steps_with_given_fields()
            for name in step.system.optional_images
            if name not in given
            and (step.controlnets or name not in CONTROL_IMAGES)
            and (step.ip_adapters or name != IMAGE_PROMPT)
        ]
        return [*dict.fromkeys(names)]

    def read_images(self) -> list[str]:
        """The image fields of a row that its steps read: those that it must bring, and the optional ones."""
        return [*self.needed_images(), *self.optional_images()]

    def _steps_with_given_fields(self) -> "Iterator[tuple[ResolvedRoute, set[str]]]":
        """Each step, with the fields that the step before it gives."""
        given: set[str] = set()
        for step in self.steps:
            yield step, given
            given = {"image", "depth_map"} if step.system.gives_depth else {"image"}


@dataclass(frozen=True, slots=True)
class SizeLimits:
    """How large the images of a job may be."""

    max_pixels: int
    """The most pixels that a model may work on."""
    image_format: str
    """The output's format."""

    @property
    def max_side(self) -> int:
        """The longest side of an image that a file of the output's format can hold, in pixels."""
        return MAX_SIDES[self.image_format]

    @property
    def too_long(self) -> str:
        """What is said of a longer side."""
        return (
            f"a {self.image_format} file has at most {self.max_side:,} pixels a side; use output.format: png"
        )


def size_limits(spec: JobSpec) -> SizeLimits:
    """The limits of a job."""
    return SizeLimits(spec.input.max_pixels, spec.output.format)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unroutable:
    """A pair of `task` and `model` whose rows nothing can generate."""

    name: str
    """What the rows call the route."""
    problem: RowError
    """Why the rows cannot be generated."""

    @property
    def model(self) -> str:
        """NO_MODEL: these rows form shards of their own."""
        return NO_MODEL


AnyRoute = ResolvedRoute | Unroutable
"""Where rows with one pair of `task` and `model` go."""


def hands_on_latents(step: ResolvedRoute, following: ResolvedRoute) -> bool:
    """Whether `following` takes the latents of `step` as they are, without decoding and without loss."""
    if step.system.gives_depth:
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
        self._resolved: dict[tuple[str | None, str | None], ResolvedRoute] = {}
        self.limits = size_limits(spec)

    def resolve(self, task: str | None, model: str | None) -> AnyRoute:
        """The route of a row with these two column values; null or empty means the default."""
        pair = (task or None, model or None)
        route = self._resolved.get(pair) or self._resolve(*pair)
        if isinstance(route, ResolvedRoute):  # There may be as many unroutable names as rows.
            self._resolved[pair] = route
        return route

    def resolve_batch(
        self, tasks: pa.Array | None, models: pa.Array | None, num_rows: int
    ) -> tuple[npt.NDArray[np.intp], list[AnyRoute]]:
        """The route of each row, as (positions, routes): each position points into the list of routes.

        The routes of the list are distinct pairs of `task` and `model`.
        """
        task_codes, task_names = _codes(tasks, num_rows)
        model_codes, model_names = _codes(models, num_rows)
        pairs, positions = np.unique(task_codes * len(model_names) + model_codes, return_inverse=True)
        routes = [
            self.resolve(task_names[pair // len(model_names)], model_names[pair % len(model_names)])
            for pair in pairs.tolist()
        ]
        return positions, routes

    def _resolve(self, task: str | None, model: str | None) -> AnyRoute:
        name = task or self._spec.fallback_route()
        if name is None:
            return _unroutable("", "missing_task", f"the row has no task; routes are {self._names()}")
        route = self._spec.routes.get(name)
        if route is None:
            message = (
                f"`{name}` is not a route{did_you_mean(name, self._spec.routes)}; routes are {self._names()}"
            )
            return _unroutable(name, "unknown_task", message)
        model = model or route.model
        if model not in self._models:
            hint, known = did_you_mean(model, self._models), ", ".join(self._models)
            return _unroutable(name, "unknown_model", f"`{model}` is not a model{hint}; models are {known}")
        card, generation_task = self._models[model], self._spec.task_of(name)
        system = find_system(card.family, generation_task)
        if system is None:
            message = unsupported_task(model, generation_task, self._models)
            return _unroutable(name, "unsupported_task", message)
        then = [self.resolve(step, None) for step in route.then]
        for step in then:
            if isinstance(step, Unroutable):
                return Unroutable(name=name, problem=step.problem)
        return ResolvedRoute(
            name=name,
            model=model,
            system=system,
            defaults=_defaults(system, card, route),
            # Rows do not change a later step's values, so its sampler is resolved here.
            then=tuple(
                replace(step, defaults=settled_image_prompt(settled_controls(with_sampler(step.defaults))))
                for step in then
                if isinstance(step, ResolvedRoute)
            ),
            loras=card.loras,
            controlnets=card.controlnets,
            embeddings=card.embeddings,
            ip_adapters=card.ip_adapters,
            keep_steps=route.keep_steps,
        )

    def _names(self) -> str:
        return ", ".join(self._spec.routes)


def unsupported_task(model: str, task: str, models: Mapping[str, ModelCard]) -> str:
    """The message that this model cannot do this task, with the models of the job that can."""
    family = models[model].family
    capable = [name for name, card in models.items() if find_system(card.family, task)]
    hint = f"; models here that can: {', '.join(capable)}" if capable else "; no model of this job can"
    return f"model `{model}` ({family}) does {', '.join(tasks_of(family))}, not {task}{hint}"


def _defaults(system: System, card: ModelCard, route: Route) -> dict[str, ParameterValue | None]:
    """The values of the parameters that a row does not set itself."""
    from_checkpoint: dict[str, ParameterValue | None] = {
        "height": None if system.resizes_image else card.height,
        "width": None if system.resizes_image else card.width,
        "scheduler": card.scheduler,
    }
    defaults = {
        name: from_checkpoint.get(name) if value is None else value for name, value in system.defaults.items()
    }
    set_by_route = with_preset(route.set_parameters())
    return defaults | {name: value for name, value in set_by_route.items() if name in defaults}


def _unroutable(name: str, code: str, message: str) -> Unroutable:
    return Unroutable(name=name, problem=RowError(code, message))


def _codes(array: pa.Array | None, num_rows: int) -> tuple[npt.NDArray[np.int64], list[str | None]]:
    """The rows' values as (codes, names): each code is the position of the row's value in the names.

    The last name is None, the value of rows with null.
    """
    if array is None:
        return np.zeros(num_rows, dtype=np.int64), [None]
    encoded = array.dictionary_encode()
    names: list[str | None] = [*encoded.dictionary.to_pylist(), None]
    codes = encoded.indices.fill_null(len(names) - 1).to_numpy(zero_copy_only=False)
    return codes.astype(np.int64), names
