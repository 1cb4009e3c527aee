"""Which task a model can do with the columns of an input, and the values that its route begins with."""

from collections.abc import Collection, Mapping, Sequence

from models import trained_models
from schemas.errors import SpecError
from schemas.systems.model_card import ModelCard
from schemas.systems.parameters import ParameterValue
from schemas.systems.recipes import recipe_of
from schemas.systems.system_table import SYSTEMS, System, find_system
from schemas.wording.printable import listed

STEPS, GUIDANCE = "num_inference_steps", "guidance_scale"
FOR_SHAPES: Mapping[str, ParameterValue] = {STEPS: 20, GUIDANCE: 2.5}
"""The values that suit the small models that come with darkroom; see models/shapes/README.md."""


def choose_system(card: ModelCard, fields: Collection[str]) -> System:
    """The system of the model that uses the most images that rows with these fields have.

    SpecError, with the models that could, where it can do nothing with them.
    """
    own = [system for system in SYSTEMS if system.family == card.family]
    fitting = [system for system in own if not _lacking(system, fields)]
    if not fitting:
        needs = [f"{system.task} (which needs {_shown(_needed(system))})" for system in own]
        others = [f"{system.task} ({system.family})" for system in SYSTEMS if not _lacking(system, fields)]
        could = f"With this input, models of other families can do {listed(others)}. " if others else ""
        raise SpecError(
            f"{card.checkpoint} can do {listed(needs)}, and the input has {_shown(sorted(fields))}. {could}"
            "Name another model with --model, or add the columns"
        )
    return max(fitting, key=lambda system: len(system.images))


def choose_systems(card: ModelCard, fields: Collection[str], tasks: Sequence[str]) -> list[System]:
    """The systems of the rows' own tasks; SpecError for a task that the model cannot do with these fields."""
    systems = []
    for task in tasks:
        system = find_system(card.family, task)
        if system is None:
            able = [each.family for each in SYSTEMS if each.task == task]
            raise SpecError(
                f"the column `task` asks for {task}, which {card.checkpoint} ({card.family}) cannot do; "
                f"models of the families {listed(able)} can. Name one of them with --model"
            )
        if lacking := _lacking(system, fields):
            raise SpecError(
                f"the column `task` asks for {task}, which needs {_shown(lacking)}; add the columns"
            )
        systems.append(system)
    return systems


def route_values(card: ModelCard, system: System, checkpoint: str) -> dict[str, ParameterValue]:
    """The parameters that a drafted route sets, by name."""
    recipe = recipe_of(checkpoint)
    if recipe and "recipe" in system.defaults:
        return {"recipe": recipe}
    values = {name: system.defaults[name] for name in (STEPS, GUIDANCE) if name in system.defaults}
    if checkpoint.removeprefix("demo:") in trained_models.KINDS:
        values |= FOR_SHAPES
    if "strength" in system.defaults:
        values["strength"] = system.defaults["strength"]
    return {name: value for name, value in values.items() if value is not None}


def _needed(system: System) -> list[str]:
    return [*(["prompt"] if "prompt" in system.texts else []), *system.images]


def _lacking(system: System, fields: Collection[str]) -> list[str]:
    return [name for name in _needed(system) if name not in fields]


def _shown(fields: Sequence[str]) -> str:
    return " and ".join(f"`{field}`" for field in fields)
