"""How many graphs `batching.compile` makes of each model, at most: for each shape of a block."""

from collections import defaultdict
from collections.abc import Iterator

from actors.rows.routing import ResolvedRoute, Router
from jobs.planning.row_scan import INPUT, Findings, StepSize
from schemas.job import Job
from schemas.spec.job_spec import BatchingSpec
from schemas.systems.model_card import ModelCard
from schemas.wording.amounts import counted

SAFE_ROWS = 3
"""The rows that Safe's UNet gets for an image: without prompt, with it, and with what is to be avoided."""
_SCALES = ("guidance_scale", "sld_guidance_scale", "sld_preset")
"""The columns by which a row decides how many rows its images take."""


def graph_lines(job: Job, findings: Findings) -> Iterator[str]:
    """A line for each model that the rows need."""
    if not job.spec.batching.compile:
        return
    steps: defaultdict[str, set[StepSize]] = defaultdict(set)
    for count in findings.counts:
        for step in (StepSize(count.route, count.model, count.size), *count.then):
            steps[step.model].add(step)
    for model, of_model in sorted(steps.items()):
        yield _line(job, model, of_model)


def _line(job: Job, model: str, steps: set[StepSize]) -> str:
    router = Router(job.spec, job.models)
    routes = [
        route for step in steps if isinstance(route := router.resolve(step.route, model), ResolvedRoute)
    ]
    rows = {number for route in routes for number in _rows_an_image(route, job)}
    number = graphs_a_size(job.models[model], job.spec.batching, rows)
    sizes = {step.size for step in steps}
    known = {size for size in sizes if INPUT not in size}
    parts = []
    if known:
        parts.append(f"{counted(number * len(known), 'graph')} for {counted(len(known), 'image size')}")
    if sizes - known:
        parts.append(f"{counted(number, 'graph')} for each size of its input images")
    line = f"batching.compile: {model} needs at most {' and '.join(parts)}"
    if job.spec.long_prompts == "chunk":
        line += ", and as many again for each number of windows that longer prompts take"
    return line


def graphs_a_size(card: ModelCard, batching: BatchingSpec, rows_an_image: set[int]) -> int:
    """The most graphs of a model for one size of its images.

    `rows_an_image`: the numbers of rows that an image takes in the UNet's batches. In a mixed batch, padding
    is for the mean of them, rounded up.
    """
    multiples = range(min(rows_an_image), max(rows_an_image) + 1)
    batch_sizes = {images * rows for images in batching.padded_images for rows in multiples}
    return card.unet_shapes * len(batch_sizes) + card.decoder_shapes * len(batching.decoded_images)


def _rows_an_image(route: ResolvedRoute, job: Job) -> range:
    """The numbers of rows that an image of a route can take in the UNet's batches."""
    guided = SAFE_ROWS if "sld_guidance_scale" in route.defaults else 2
    scales = {name: route.defaults[name] for name in _SCALES if name in route.defaults}
    if any(name in job.columns.fields for name in scales):
        return range(1, guided + 1)
    if float(str(scales["guidance_scale"])) <= 1:
        return range(1, 2)
    # Below 1, Safe's own guidance is off.
    has_third = guided == SAFE_ROWS and float(str(scales["sld_guidance_scale"])) >= 1
    return range(3, 4) if has_third else range(2, 3)
