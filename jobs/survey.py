"""What a spec meets: the input's files and columns, and the checkpoints. Footers only, no rows."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache

import pyarrow as pa

from actors.checkpoints.checkpoint_folders import build_demo_checkpoints
from actors.checkpoints.model_cards import read_card
from actors.checkpoints.weights_check import check_weights
from actors.inputs.footers import read_footer
from actors.rows.checks import own_limits
from actors.rows.routing import unsupported_task
from actors.rows.scheduler_checks import published_scheduler
from actors.storage.objects import Storage, StoredObject
from actors.storage.stores import open_storage
from actors.storage.uris import S3_SCHEME, normalise
from schemas.columns.input_columns import ColumnMap, map_columns
from schemas.columns.output_columns import output_schema
from schemas.errors import SpecError
from schemas.job import Job
from schemas.spec.job_spec import JobSpec
from schemas.systems.model_card import ModelCard
from schemas.systems.scheduler_rules import refusal
from schemas.systems.schedulers import options_text
from schemas.systems.system_table import SYSTEMS, System, find_system

FOOTERS_AT_ONCE = 16
_WILDCARDS = "*?["


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyedFile:
    """One file of the input, by its footer."""

    stored: StoredObject
    num_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """A job and the files it reads."""

    job: Job
    files: tuple[SurveyedFile, ...]

    @property
    def num_rows(self) -> int:
        """Rows of the whole input."""
        return sum(file.num_rows for file in self.files)


OpenInput = Callable[[str], Storage]


def input_opener(spec: JobSpec) -> OpenInput:
    """Opens the storage of an input file, with the spec's patience; all files share one S3 client."""

    @cache
    def open_kind(remote: bool) -> Storage:
        return open_storage(S3_SCHEME + "input" if remote else "/", deadline_s=spec.errors.storage_deadline_s)

    return lambda uri: open_kind(uri.startswith(S3_SCHEME))


def survey(spec: JobSpec) -> Survey:
    """Look at everything a job needs; SpecError for whatever is missing or does not fit."""
    _check_output(spec)
    open_input = input_opener(spec)
    stored = find_files(spec, open_input)
    _, schema = read_footer(open_input(stored[0].uri), stored[0].uri)
    columns = map_columns(schema, spec.input)
    _check_columns(spec, columns, schema)

    def look_at(file: StoredObject) -> SurveyedFile:
        num_rows, other = read_footer(open_input(file.uri), file.uri)
        _check_drift(columns, stored[0].uri, schema, file.uri, other)
        return SurveyedFile(stored=file, num_rows=num_rows)

    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
        files = tuple(pool.map(look_at, stored))
    if not sum(file.num_rows for file in files):
        raise SpecError(f"input.path: no rows in {', '.join(_paths(spec))}")
    build_demo_checkpoints(spec.models.values())
    models = {name: read_card(name, model) for name, model in spec.models.items()}
    _check_routes(spec, models)
    job = Job(
        spec=spec,
        models=models,
        columns=columns,
        schema=output_schema(spec, models, columns, schema).serialize().to_pybytes(),
    )
    for name, model in job.checkpoints.items():
        check_weights(name, model, with_checker=spec.safety.checker == "on")
    return Survey(job=job, files=files)


def find_files(spec: JobSpec, open_input: OpenInput) -> list[StoredObject]:
    """The input's Parquet files in the order of their URIs, each once."""
    found: dict[str, StoredObject] = {}
    for path in _paths(spec):
        files = _expand(path, open_input(path))
        if not files:
            raise SpecError(f"input.path: no Parquet file is there: {path} (a file, a folder or a pattern)")
        for file in files:
            _check_name(file.uri)
            found[file.uri] = file
    return [found[uri] for uri in sorted(found)]


def _check_name(uri: str) -> None:
    """Workers are told of a file by its name, and records tell it in JSON."""
    try:
        uri.encode()
        _place("input.path", uri)
    except UnicodeEncodeError as error:
        raise SpecError(f"input.path: {uri!r} has a name that is no UTF-8; rename it") from error


def _paths(spec: JobSpec) -> list[str]:
    for folder in spec.input.pictures:
        _place("input.pictures", folder)
    paths = [spec.input.path] if isinstance(spec.input.path, str) else spec.input.path
    return [_place("input.path", path) for path in paths]


def _place(key: str, path: str) -> str:
    try:
        return normalise(path)
    except SpecError as error:
        raise SpecError(f"{key}: {error}") from error


def _check_output(spec: JobSpec) -> None:
    """A job must not read what it writes: its parts would look like a changed input."""
    output = _place("output.path", spec.output.path)
    for path in _paths(spec):
        if _takes(path, f"{output}/data/train-00000-of-00001.parquet"):
            raise SpecError(
                f"output.path: {output} lies where input.path looks for rows ({path}), so the job would read "
                "its own parts; choose a folder beside the input"
            )


def _expand(path: str, storage: Storage) -> Sequence[StoredObject]:
    is_bucket = path.startswith(S3_SCHEME) and "/" not in path.removeprefix(S3_SCHEME)
    stored = None if is_bucket else storage.stat(path)
    if stored is not None:
        return [stored]
    first = min((path.index(sign) for sign in _WILDCARDS if sign in path), default=None)
    folder = path if first is None else path[:first].rpartition("/")[0]
    return [file for file in storage.list(folder) if _takes(path, file.uri)]


def _takes(path: str, uri: str) -> bool:
    """Whether a folder or a pattern stands for this file."""
    if any(sign in path for sign in _WILDCARDS):
        return _matches(uri.split("/"), path.split("/"))
    names = uri.removeprefix(f"{path}/")
    return uri != names and names.endswith(".parquet") and not any(map(_is_hidden, names.split("/")))


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """As in a shell: `*` stays within one name, `**` stands for any number of folders."""
    if not patterns or (not names and patterns[0] != "**"):
        return not names and not patterns
    if patterns[0] == "**":
        deeper = bool(names) and not _is_hidden(names[0]) and _matches(names[1:], patterns)
        return deeper or _matches(names, patterns[1:])
    hidden = _is_hidden(names[0]) and names[0][0] != patterns[0][:1]
    return not hidden and fnmatchcase(names[0], patterns[0]) and _matches(names[1:], patterns[1:])


def _is_hidden(name: str) -> bool:
    """Names that begin with _ or . are other programs' bookkeeping, as in Spark and Hive."""
    return name.startswith(("_", "."))


def _check_columns(spec: JobSpec, columns: ColumnMap, schema: pa.Schema) -> None:
    tasks = {spec.task_of(route) for route in spec.routes}
    if "prompt" not in columns.fields and any(
        "prompt" in system.texts for system in SYSTEMS if system.task in tasks
    ):
        raise SpecError(
            f"the input has no column `prompt`; it has {', '.join(schema.names)}. "
            "Name the one to use with input.columns: {prompt: ...}"
        )
    if "task" not in columns.fields and spec.fallback_route() is None:
        raise SpecError(
            "the input has no column `task` and the spec no default_route, so no row has a route; "
            f"set default_route to one of {', '.join(spec.routes)}"
        )


def _check_drift(columns: ColumnMap, first: str, schema: pa.Schema, uri: str, other: pa.Schema) -> None:
    """Every file must have the columns that the first one has, with the same types."""
    for column in columns.columns():
        if column not in other.names:
            raise SpecError(f"{uri} has no column `{column}`, which {first} has; all files must agree")
        if other.names.count(column) > 1:
            raise SpecError(f"{uri} has several columns of the name `{column}`; rename all but one")
        mine, theirs = schema.field(column).type, other.field(column).type
        if mine != theirs:
            raise SpecError(f"column `{column}` is {theirs} in {uri} and {mine} in {first}; all must agree")


def _check_routes(spec: JobSpec, models: dict[str, ModelCard]) -> None:
    for name, route in spec.routes.items():
        card = models[route.model]
        task = spec.task_of(name)
        system = find_system(card.family, task)
        if system is None:
            raise SpecError(f"routes.{name}: {unsupported_task(route.model, task, models)}")
        for step in route.then:
            _check_step(spec, name, step, models)
        for parameter, value in route.set_parameters().items():
            if parameter not in system.defaults:
                raise SpecError(f"routes.{name}.{parameter}: {system.pipeline} has no such parameter")
            if parameter in ("height", "width") and isinstance(value, int) and value % card.size_factor:
                raise SpecError(
                    f"routes.{name}.{parameter}: {value} is not a multiple of {card.size_factor}, "
                    f"the VAE factor of model `{route.model}`"
                )
            most = own_limits(card).get(parameter)
            if most is not None and isinstance(value, int) and value > most:
                raise SpecError(
                    f"routes.{name}.{parameter}: {value} is more than the {most} that model "
                    f"`{route.model}` takes"
                )
        _check_scheduler(spec, name, system, card)


def _check_scheduler(spec: JobSpec, name: str, system: System, card: ModelCard) -> None:
    route = spec.routes[name]
    values = {**system.defaults, **route.set_parameters()}
    # Rows may change a route's number of steps, but not that of a chain's later steps.
    follows = any(name in other.then for other in spec.routes.values())
    late = float(str(values.get("strength") or 1)) < 1 or bool(values.get("denoising_start"))
    said = refusal(
        route.scheduler or card.scheduler,
        None if route.scheduler_options is None else options_text(route.scheduler_options),
        published_scheduler(card, system),
        int(str(values["num_inference_steps"])) if follows else None,
        late,
    )
    if said is not None:
        key = "scheduler_options" if route.scheduler_options else "scheduler"
        raise SpecError(f"routes.{name}.{key}: {said}")


def _check_step(spec: JobSpec, route: str, step: str, models: dict[str, ModelCard]) -> None:
    system = find_system(models[spec.routes[step].model].family, spec.task_of(step))
    if system is not None and "image" not in system.images:
        raise SpecError(
            f"routes.{route}.then: `{step}` ({system.task}) takes no picture, so it cannot come second"
        )
    if system is not None and "strength" in system.defaults:
        values = {**system.defaults, **spec.routes[step].set_parameters()}
        steps, strength = (float(str(values[name])) for name in ("num_inference_steps", "strength"))
        if values.get("denoising_start") is None and int(steps * strength) < 1:
            raise SpecError(
                f"routes.{step}: strength {strength:g} of {steps:g} steps runs no step at all, and as a "
                f"later step (routes.{route}.then) it takes no row's; raise strength or num_inference_steps"
            )
