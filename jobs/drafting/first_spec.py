"""`darkroom init`: a spec that runs, written from the input that it is given."""

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from actors.checkpoints.checkpoint_folders import build_demo_checkpoints
from actors.checkpoints.model_cards import read_card
from actors.checkpoints.weights_check import check_weights
from actors.storage.output import open_output
from actors.storage.uris import join, normalise
from jobs.drafting.column_choice import ChosenColumns, choose_columns
from jobs.drafting.sampled_input import SampledInput, sample_input
from jobs.drafting.spec_text import Draft, DraftedRoute, sentence
from jobs.drafting.task_choice import choose_system, choose_systems, route_values
from jobs.intake.formats import COMPRESSIONS
from jobs.output.job_record import read_record
from jobs.survey.route_checks import check_routes
from schemas.columns.column_notes import column_notes
from schemas.columns.fields import FIELD_KINDS, used_fields
from schemas.columns.input_columns import ColumnMap, map_columns
from schemas.columns.output_columns import OPTIONAL_PART_COLUMNS, output_schema
from schemas.errors import RefusedError, SpecError
from schemas.spec.job_spec import JobSpec, ModelSpec
from schemas.spec.spec_file import parse_spec
from schemas.systems.control_parameters import CONTROL_IMAGES
from schemas.systems.image_prompts import IMAGE_PROMPT
from schemas.systems.model_card import ModelCard
from schemas.systems.system_table import TASKS
from schemas.wording.amounts import counted
from schemas.wording.next_commands import command, next_lines
from schemas.wording.printable import escaped, listed

DEADLINE_S = 20.0
"""How long requests for the input, the checkpoint and the output are repeated."""
MAX_KEPT = 20
DRAWS_SHAPES, DRAWS_NOISE = "demo:shapes", "demo:variation"
"""The models of those who name none: for prompts, and for images without prompts."""
_EXAMPLES: Mapping[str, tuple[str, str]] = {
    DRAWS_SHAPES: (
        "draws simple shapes: `a big red circle at the left`",
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
    ),
    DRAWS_NOISE: (
        "has random weights, so its images are noise",
        "lambdalabs/sd-image-variations-diffusers",
    ),
}
"""What these models draw, and a published model of the same kind."""
_NAME = re.compile(r"[^A-Za-z0-9._-]+")
_WHO = "the new spec"
"""What stands for the file's name in a message about a spec that is not written yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the user has said about the spec; None: nothing."""

    path: str
    model: str | None = None
    spec: Path | None = None
    output: str | None = None
    prompt_column: str | None = None


def write_first_spec(wishes: Wishes, console: Console) -> Path:
    """Write the spec and print the commands that come next; the path of the file.

    SpecError where no spec would run. RefusedError where a file or an output would be overwritten.
    """
    name = name_of(wishes.path)
    target = wishes.spec or Path(f"{name}.yaml")
    _refuse_existing(target)
    draft = _first_draft(wishes, name)
    spec = parse_spec(draft.text(), _WHO)  # what the user has typed is checked before anything is read
    _refuse_taken(spec.output.path, target)
    sampled = sample_input(spec)
    chosen = choose_columns(sampled, wishes.prompt_column)
    if wishes.model is None and "prompt" not in chosen.fields:
        draft = replace(draft, checkpoint=DRAWS_NOISE)
    card = _card_of(draft.checkpoint)
    draft = _with_routes(replace(draft, model=card.family), card, sampled, chosen)
    draft = _with_columns(draft, card, sampled, chosen)
    check_routes(parse_spec(draft.text(), _WHO), {draft.model: card})
    draft = replace(draft, model_notes=_model_notes(draft, wishes, card, chosen))
    _write(target, draft.text())
    _print_next(draft, target, console)
    return target


def name_of(path: str) -> str:
    """The name of a job over this input: that of its file or folder, in the letters that a name may have."""
    names = [name for name in path.split("/") if name and not any(sign in name for sign in "*?[")]
    stem = names[-1] if names else ""
    if stem in ("", ".", "hf:", "s3:", "file:"):
        stem = Path.cwd().name
    base, ending = posixpath.splitext(stem)
    stem = posixpath.splitext(base)[0] if ending.lower() in COMPRESSIONS else base
    return _NAME.sub("-", stem).strip("-._")[:100] or "images"


def _refuse_existing(target: Path) -> None:
    if target.exists() or target.is_symlink():
        other = target.with_name(f"{target.stem}-2{target.suffix}")
        raise RefusedError(f"{target} exists, and is not overwritten; name another file with --spec {other}")


def _refuse_taken(output: str, target: Path) -> None:
    """Raise RefusedError if another job has this output: the new spec could not run."""
    if read_record(open_output(normalise(output), deadline_s=DEADLINE_S)):
        raise RefusedError(
            f"{output} is the output of a job that has begun, which {target} would not be; name another with "
            f"--output {output}-2"
        )


def _first_draft(wishes: Wishes, name: str) -> Draft:
    """A spec with what the user has typed, before the input and the model are looked at."""
    return Draft(
        title="",
        name=name,
        path=wishes.path,
        entries={},
        keep=[],
        input_notes=[],
        model="model",
        checkpoint=wishes.model or DRAWS_SHAPES,
        model_notes=[],
        routes=[DraftedRoute(task="text2img", values={})],
        output=wishes.output or join("out", name),
    )


def _card_of(checkpoint: str) -> ModelCard:
    """The card of a checkpoint that darkroom can load."""
    model = ModelSpec(checkpoint=checkpoint)
    build_demo_checkpoints([model])
    try:
        card = read_card("model", model)
        check_weights("model", model, with_checker=True)
    except SpecError as error:
        # There is no spec yet in which the user could look for the key.
        raise SpecError(str(error).replace("models.model.checkpoint", "--model")) from error
    return card


def _with_routes(draft: Draft, card: ModelCard, sampled: SampledInput, chosen: ChosenColumns) -> Draft:
    values = sampled.values(chosen.fields["task"]) if "task" in chosen.fields else []
    if tasks := [value for value in values if value in TASKS]:
        systems = choose_systems(card, chosen.fields, tasks)
        reasons = dict.fromkeys(tasks, "")
    else:
        systems = [choose_system(card, chosen.fields)]
        has = [field for field in ("prompt", *systems[0].images) if field in chosen.fields]
        reasons = {systems[0].task: f"for rows with {listed(has)}"}
    routes = [
        DraftedRoute(
            task=system.task, values=route_values(card, system, draft.checkpoint), reason=reasons[system.task]
        )
        for system in systems
    ]
    rows = f"{counted(sampled.num_rows, 'row')} in {counted(sampled.num_files, 'file')}"
    return replace(
        draft,
        title=f"Images for {draft.path} ({rows}). Written by `darkroom init`: change what you like.",
        routes=routes,
    )


def _with_columns(draft: Draft, card: ModelCard, sampled: SampledInput, chosen: ChosenColumns) -> Draft:
    """The draft with the columns of the input."""
    used = used_fields(parse_spec(draft.text(), _WHO))
    draft = replace(
        draft, entries={field: chosen.entries[field] for field in chosen.entries if field in used}
    )
    spec = parse_spec(draft.text(), _WHO)
    columns = map_columns(sampled.schemas, spec.input, used)
    keep = _kept(sampled, columns, output_schema(spec, {draft.model: card}, columns).names)
    notes = [*column_notes(sampled.schemas, _with_kept(sampled, spec, keep, used), spec), *sampled.notes]
    return replace(draft, keep=keep, input_notes=[sentence(note) for note in notes])


def _with_kept(sampled: SampledInput, spec: JobSpec, keep: list[str], used: set[str]) -> ColumnMap:
    kept = spec.input.model_copy(update={"keep": keep})
    return map_columns(sampled.schemas, kept, used)


def _kept(sampled: SampledInput, columns: ColumnMap, written: list[str]) -> list[str]:
    """The columns of single values that no field reads, and that the output has room for by their names."""
    # With another model or route, the output has a column for each field that is read.
    taken = {*written, *OPTIONAL_PART_COLUMNS, *FIELD_KINDS, *columns.columns()}
    return [name for name in sampled.single_values if name not in taken][:MAX_KEPT]


def _model_notes(draft: Draft, wishes: Wishes, card: ModelCard, chosen: ChosenColumns) -> list[str]:
    notes = []
    if draft.checkpoint in _EXAMPLES:
        draws, published = _EXAMPLES[draft.checkpoint]
        real = ("--spec", f"{draft.name}-real.yaml", "--output", f"{draft.output}-real")
        again = command("init", wishes.path, "--model", published, *real)
        notes += [
            f"A small model that comes with darkroom to try it with. It {draws}. For a published one change "
            f"this line to {published}, or write another spec with its values:",
            f"  {again}",
        ]
    else:
        notes.append(
            f"A checkpoint of the family {card.family}, whose own size is {card.width}x{card.height}."
        )
    if {*CONTROL_IMAGES} & chosen.fields.keys():
        notes.append(
            "The rows have control images, which are not read until the model has a ControlNet. Write here\n"
            "  controlnets: {NAME: OWNER/CONTROLNET}\n"
            "and in the route\n"
            "  controlnet: NAME"
        )
    if IMAGE_PROMPT in chosen.fields:
        notes.append(
            f"The rows have an `{IMAGE_PROMPT}`, which is not read until the model has an IP-Adapter: see "
            "`ip_adapters` in docs/job-spec.md."
        )
    return notes


def _write(target: Path, text: str) -> None:
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        _refuse_existing(target)
    except OSError as error:
        raise SpecError(
            f"{target}: cannot be written: {error.strerror or error}; name another with --spec"
        ) from error


def _print_next(draft: Draft, target: Path, console: Console) -> None:
    spec = str(target)
    tasks = listed([route.task for route in draft.routes])
    commands = [
        (command("try", spec), "generates some rows here and now"),
        (command("plan", spec), "checks every row, and tells what the job will do"),
        (command("run", spec), "generates all rows; run it again to resume"),
    ]
    opening = f"{spec}: {tasks} with {draft.checkpoint}, for {draft.path}, into {draft.output}"
    for line in [opening, *next_lines(commands)]:
        console.print(escaped(line), soft_wrap=True)
