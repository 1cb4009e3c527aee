"""Notes about routes that call a few-step model as if it were an ordinary one."""

from collections.abc import Iterator, Mapping

from schemas.spec.job_spec import JobSpec
from schemas.systems.model_card import ModelCard
from schemas.systems.parameters import with_preset
from schemas.systems.recipes import recipe_of, spoils
from schemas.systems.sampler_names import with_sampler
from schemas.systems.system_table import find_system


def few_step_notes(spec: JobSpec, models: Mapping[str, ModelCard]) -> Iterator[str]:
    """Yield a line for each route whose values do not suit the few-step model or LoRA that it uses.

    That it is one is told from the name of its file or repository, or from the spec's own name for it.
    """
    for name, route in spec.routes.items():
        card = models[route.model]
        system = find_system(card.family, spec.task_of(name))
        if system is None or not {"num_inference_steps", "guidance_scale"} <= system.defaults.keys():
            continue
        values = with_sampler({**system.defaults, **with_preset(route.set_parameters())})
        scheduler = str(values.get("scheduler") or card.scheduler)
        steps = int(str(values["num_inference_steps"]))
        guidance_scale = float(str(values["guidance_scale"]))
        for what in _sources(spec, name):
            recipe = recipe_of(what)
            if recipe and spoils(recipe, scheduler, steps, guidance_scale):
                yield (
                    f"routes.{name}: {what} is a few-step model by its name; with {scheduler}, {steps} steps "
                    f"and guidance_scale {guidance_scale:g} its images may be spoilt. `recipe: {recipe}` "
                    "sets what its model card says"
                )
                break


def _sources(spec: JobSpec, name: str) -> Iterator[str]:
    """The names of a route's LoRAs and model: of the files or repositories, and then the spec's own."""
    route = spec.routes[name]
    model = spec.models[route.model]
    for lora, weight in (route.loras or {}).items():
        if weight:
            source = model.loras[lora]
            yield "/".join(part for part in (source.path, source.subfolder, source.weight_name) if part)
            yield lora
    if "unet" in model.components:
        yield model.components["unet"].path
    yield model.checkpoint
    yield route.model
