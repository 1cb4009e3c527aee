"""Checks that a spec's routes fit the checkpoints of their models."""

from actors.rows.checks import checkpoint_limits
from actors.rows.routing import unsupported_task
from actors.rows.scheduler_checks import published_scheduler
from schemas.errors import SpecError
from schemas.spec.job_spec import JobSpec
from schemas.systems.model_card import ModelCard
from schemas.systems.parameters import with_preset
from schemas.systems.scheduler_rules import refusal
from schemas.systems.system_table import System, find_system
from schemas.wording.amounts import counted


def check_routes(spec: JobSpec, models: dict[str, ModelCard]) -> None:
    """Raise SpecError for the first route that does not fit."""
    for name, route in spec.routes.items():
        card = models[route.model]
        task = spec.task_of(name)
        system = find_system(card.family, task)
        if system is None:
            raise SpecError(f"routes.{name}: {unsupported_task(route.model, task, models)}")
        for step in route.then:
            _check_step(spec, name, step, models)
        _check_sides(spec, name, models)
        for parameter, value in route.set_parameters().items():
            if parameter not in system.defaults:
                raise SpecError(f"routes.{name}.{parameter}: {system.pipeline} has no such parameter")
            if parameter in ("height", "width") and isinstance(value, int) and value % card.size_factor:
                raise SpecError(
                    f"routes.{name}.{parameter}: {value} is not a multiple of {card.size_factor}, "
                    f"the VAE factor of model `{route.model}`"
                )
            most = checkpoint_limits(card).get(parameter)
            if most is not None and isinstance(value, int) and value > most:
                raise SpecError(
                    f"routes.{name}.{parameter}: {value} is more than the {most} that model "
                    f"`{route.model}` takes"
                )
        _check_scheduler(spec, name, system, card)


def _check_scheduler(spec: JobSpec, name: str, system: System, card: ModelCard) -> None:
    route = spec.routes[name]
    values = {**system.defaults, **with_preset(route.set_parameters())}
    options = values.get("scheduler_options")
    # Rows may change a route's number of steps, but not that of a chain's later steps.
    is_later_step = any(name in other.then for other in spec.routes.values())
    begins_late = float(str(values.get("strength") or 1)) < 1 or bool(values.get("denoising_start"))
    reason = refusal(
        str(values.get("scheduler") or card.scheduler),
        None if options is None else str(options),
        published_scheduler(card, system),
        int(str(values["num_inference_steps"])) if is_later_step else None,
        begins_late,
    )
    if reason is not None:
        key = next(
            (key for key in ("scheduler_options", "scheduler", "recipe") if getattr(route, key)), "scheduler"
        )
        raise SpecError(f"routes.{name}.{key}: {reason}")


def _check_sides(spec: JobSpec, name: str, models: dict[str, ModelCard]) -> None:
    """Raise SpecError where the height or width of a later step does not fit a step behind it."""
    for side in ("height", "width"):
        pixels: int | None = None
        for step in spec.routes[name].then:
            route = spec.routes[step]
            system = find_system(models[route.model].family, spec.task_of(step))
            if system is None:
                return
            if pixels is not None and pixels % system.image_multiple:
                raise SpecError(
                    f"routes.{name}.then: `{step}` ({system.task}) would be given a {side} of {pixels}; it "
                    f"needs a multiple of {system.image_multiple}"
                )
            own = route.set_parameters().get(side, system.defaults.get(side))
            pixels = int(str(own)) if own is not None and route.padding_mask_crop is None else pixels
            pixels = pixels and pixels * system.scale


def _check_step(spec: JobSpec, route: str, step: str, models: dict[str, ModelCard]) -> None:
    system = find_system(models[spec.routes[step].model].family, spec.task_of(step))
    if system is not None and "image" not in system.images:
        raise SpecError(
            f"routes.{route}.then: `{step}` ({system.task}) takes no image, so it cannot be a later step"
        )
    if system is not None and "strength" in system.defaults:
        values = {**system.defaults, **spec.routes[step].set_parameters()}
        steps, strength = (float(str(values[name])) for name in ("num_inference_steps", "strength"))
        if values.get("denoising_start") is None and int(steps * strength) < 1:
            raise SpecError(
                f"routes.{step}: strength {strength:g} of {counted(steps, 'step')} runs no step at all, and "
                f"rows cannot change the values of a later step (routes.{route}.then); raise strength or "
                "num_inference_steps"
            )
