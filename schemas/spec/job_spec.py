"""A job's YAML as types: one frozen model per section, strict, with unknown keys refused."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator
from pydantic_core import PydanticKnownError

from schemas.systems.parameters import Parameters, StrictModel
from schemas.systems.schedulers import unknown_scheduler
from schemas.systems.system_table import TASKS, takes
from schemas.wording.nearest import nearest
from schemas.wording.printable import command_in, listed, shortened


def _shown_as_it_is(text: str) -> str:
    """The text; ValueError where a terminal that shows it would be commanded by it."""
    sign = command_in(text)
    if sign:
        raise ValueError(f"holds U+{ord(sign):04X}, which a terminal obeys and does not show; leave it out")
    return text


Plain = Annotated[str, AfterValidator(_shown_as_it_is)]
Name = Annotated[str, Field(min_length=1), AfterValidator(_shown_as_it_is)]


class InputSpec(StrictModel):
    """Where the rows are and what their columns mean."""

    path: str | list[str] = Field(min_length=1)
    """A Parquet file, a folder, a glob, or a list of them; local or s3://."""
    columns: dict[str, str | None] = Field(default_factory=dict)
    """field: column, where the input's names differ from darkroom's; null leaves the field unread."""
    keep: list[str] = Field(default_factory=list)
    """Input columns that are copied to the output."""
    pictures: list[str] = Field(default_factory=list)
    """Folders, s3:// or local, from which rows may name pictures, beside where the input is."""
    max_pixels: int = Field(default=2048 * 2048, ge=64 * 64, le=8192 * 8192)
    """Pixels that a model is given to work on at most: what a row asks for, or the picture it hands in."""

    @field_validator("path", "pictures")
    @classmethod
    def _shown_as_they_are(cls, paths: str | list[str]) -> str | list[str]:
        for path in [paths] if isinstance(paths, str) else paths:
            _shown_as_it_is(path)
        return paths

    @field_validator("pictures")
    @classmethod
    def _wholly_named(cls, folders: list[str]) -> list[str]:
        for folder in folders:
            if folder.startswith(("/", "s3://", "file://")):
                continue
            scheme, colon, _ = folder.partition("://")
            # Workers may have another current folder.
            what = (
                f"{shortened(scheme)}:// is not supported" if colon else f"{shortened(folder)!r} is relative"
            )
            raise ValueError(f"{what}; give an absolute path or an s3:// URI")
        return folders


class ModelSpec(StrictModel):
    """One checkpoint, under the name by which routes and rows call it."""

    checkpoint: Name
    """A `save_pretrained` folder, a Hugging Face repository, or demo:KIND for a small one."""
    revision: Plain | None = None
    """A Hugging Face branch, tag or commit."""
    variant: Plain | None = None
    """A weight file variant, such as fp16."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """auto: float16 on a GPU, float32 on a CPU."""

    @field_validator("checkpoint")
    @classmethod
    def _no_address(cls, checkpoint: str) -> str:
        if "://" in checkpoint:
            # Its own words are left out: addresses of repositories often hold a token.
            raise ValueError(
                "a checkpoint is a folder, a Hub repository such as owner/name, or demo:KIND, not an address"
            )
        return checkpoint


class Route(Parameters):
    """One entry of the task-routing stage: what a row whose `task` has this name goes through."""

    task: str | None = None
    """The generation task; the route's own name where it is left out."""
    model: Name
    """A key of `models`; a row's `model` column beats it."""
    then: list[Name] = Field(default_factory=list)
    """Routes that the picture goes through next, one after the other, without leaving the worker."""
    keep_steps: bool = False
    """Whether the pictures of the steps before the last are kept too, in the column `step_images`."""

    @field_validator("task")
    @classmethod
    def _known_task(cls, task: str | None) -> str | None:
        if task is not None and task not in TASKS:
            raise ValueError(
                f"`{shortened(task)}` is no task{nearest(task, TASKS)}; tasks are {', '.join(TASKS)}"
            )
        return task

    @field_validator("scheduler")
    @classmethod
    def _known_scheduler(cls, scheduler: str | None) -> str | None:
        said = scheduler and unknown_scheduler(scheduler)
        if said:
            raise ValueError(said)
        return scheduler


class OutputSpec(StrictModel):
    """Where the parts go and how images stand in them."""

    path: Name
    """A folder, local or s3://; it belongs to this one job."""
    images: Literal["parquet", "files"] = "parquet"
    """parquet: bytes inside the part; files: one object per image and its URI in the part."""
    format: Literal["png", "webp", "jpeg"] = "png"
    """png and webp are lossless; jpeg has quality 95."""


class BatchingSpec(StrictModel):
    """How rows are cut into shards and batches; part of what fixes the output's bits."""

    shard_rows: int = Field(default=256, ge=1, le=100_000)
    """Input rows per part: what is lost when a worker dies, and the size of one output file."""
    max_batch_rows: int = Field(default=16, ge=1, le=1024)
    """Images that go through a model together, at most."""
    exact: bool = False
    """true: each image by a plain diffusers call of its own, with the bits that gives; slower."""
    compile: bool = False
    """true: torch.compile for the UNets' blocks; minutes at the start, kept on each node for later jobs."""

    @model_validator(mode="after")
    def _one_of_both(self) -> "BatchingSpec":
        if self.exact and self.compile:
            raise ValueError("`exact` and `compile` exclude each other: compiled code has bits of its own")
        return self


class SafetySpec(StrictModel):
    """What the safety checkers that come with checkpoints are for."""

    checker: Literal["on", "off"] = "on"
    """on: a checkpoint's own safety checker, where it has one, sees every picture; off: none is loaded."""
    flagged: Literal["drop", "black", "keep"] = "drop"
    """What is stored of a picture that it flags: nothing, a black one of its size, or the picture itself.
    Whichever it is, the row's status is `filtered`, and no other row is touched."""


MAX_CACHE_GB = 1_000_000


class WorkersSpec(StrictModel):
    """The Ray actors; nothing here changes a picture on the same hardware."""

    num: int | Literal["auto"] = "auto"
    """auto: as many as the cluster's GPUs (or CPUs, where there is no GPU) allow."""
    num_gpus: float | Literal["auto"] = "auto"
    """GPUs per worker. auto: 1 where the cluster has GPUs, else 0."""
    num_cpus: int | Literal["auto"] = "auto"
    """CPUs per worker, and its torch threads on a CPU. auto: up to 4 beside a GPU, else 1."""
    model_cache_gb: float | Literal["auto"] = "auto"
    """Weights one worker holds at most. auto: 80 % of its GPU, or its share of half the memory."""
    notice_s: float = Field(default=25, ge=0, le=86_400)
    """Seconds that a worker told to end (SIGTERM) may give the shard on its device."""

    @field_validator("num", "num_cpus")
    @classmethod
    def _at_least_one(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError(f"{value} is too few; give 1 or more, or auto")
        return value

    @field_validator("num_gpus")
    @classmethod
    def _whole_or_a_share(cls, value: float | str) -> float | str:
        if isinstance(value, (int, float)) and ((value > 1 and value % 1) or 0 < value < 0.0001):
            raise ValueError(
                f"{value:g} is nothing Ray can give; give 0, a share from 0.0001 to 1, or a whole number"
            )
        return value

    @field_validator("model_cache_gb")
    @classmethod
    def _of_this_world(cls, value: float | str) -> float | str:
        if isinstance(value, (int, float)) and value > MAX_CACHE_GB:
            raise ValueError(
                f"{value:g} is more than any machine has; give {MAX_CACHE_GB:,} or less, or auto"
            )
        return value

    @field_validator("num_gpus", "model_cache_gb")
    @classmethod
    def _not_negative(cls, value: float | str) -> float | str:
        if isinstance(value, (int, float)) and value < 0:
            raise ValueError(f"{value:g} is negative; give 0 or more, or auto")
        return value


class ErrorsSpec(StrictModel):
    """How much may go wrong before the job says so."""

    max_rate: float = Field(default=0.01, ge=0, le=1)
    """Share of input rows that may fail. A plan that already finds more refuses to start, and a run of which
    the first hundred rows all fail stops, unless it is 1."""
    max_attempts: int = Field(default=3, ge=1, le=100)
    """Times that one shard may take its worker down before the row that does it is searched for, and that
    making it may fail in other ways before it is left out."""
    storage_deadline_s: float = Field(default=900, gt=0)
    """Seconds for which storage errors are retried before the job gives up."""
    stall_timeout_s: float = Field(default=1200, gt=0)
    """Seconds without progress after which a worker is killed. More than storage_deadline_s, and more than
    the longest download, load or compilation of a model, during which nothing is seen to move."""

    @model_validator(mode="after")
    def _storage_is_given_its_time(self) -> "ErrorsSpec":
        if self.stall_timeout_s <= self.storage_deadline_s:
            raise ValueError(
                f"`stall_timeout_s` ({self.stall_timeout_s:g}) must be more than `storage_deadline_s` "
                f"({self.storage_deadline_s:g}): a worker that waits for storage is not stuck"
            )
        return self


class JobSpec(StrictModel):
    """One job: rows in, models and routes, parts out."""

    version: Literal[1]
    """The format of this file."""
    name: Name = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """What reports and the dataset card call the job."""
    input: InputSpec
    models: dict[Name, ModelSpec] = Field(min_length=1)
    routes: dict[Name, Route] = Field(min_length=1)
    default_route: Name | None = None
    """For rows without a `task`. Where there is one route, that is the default."""
    output: OutputSpec
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Rows without a seed get one from this and their row_id."""
    long_prompts: Literal["truncate", "chunk"] = "truncate"
    """A prompt beyond the text encoder's 75 tokens. truncate: the rest is cut, and recorded in a column like
    `prompt_truncated`; chunk: encoded in windows of 75 tokens (not by Safe, which takes texts only)."""
    prompt_weights: Literal["off", "compel"] = "off"
    """compel: `(fox)1.5` and `snow-` are weights, in the syntax of the library compel; off: they are text."""
    safety: SafetySpec = SafetySpec()
    batching: BatchingSpec = BatchingSpec()
    workers: WorkersSpec = WorkersSpec()
    errors: ErrorsSpec = ErrorsSpec()

    @field_validator("version", mode="before")
    @classmethod
    def _the_number_one(cls, version: object) -> object:
        # For pydantic's Literal[1] true is 1 too.
        if type(version) is not int or version != 1:
            raise PydanticKnownError("literal_error", {"expected": "1"})
        return version

    @model_validator(mode="after")
    def _names_exist(self) -> "JobSpec":
        for name, route in self.routes.items():
            self._check_route(name, route)
        if self.default_route is not None and self.default_route not in self.routes:
            wanted = self.default_route
            raise ValueError(
                f"default_route: `{shortened(wanted)}` is no route{nearest(wanted, self.routes)}; "
                f"routes are {listed([*self.routes])}"
            )
        return self

    def _check_route(self, name: str, route: Route) -> None:
        if route.model not in self.models:
            raise ValueError(
                f"routes.{name}.model: `{shortened(route.model)}` is no model"
                f"{nearest(route.model, self.models)}; models are {listed([*self.models])}"
            )
        task = route.task or name
        if task not in TASKS:
            raise ValueError(
                f"routes.{name}: `{shortened(name)}` is no task, so the route needs `task:` "
                f"(one of {', '.join(TASKS)})"
            )
        for step in route.then:
            if step not in self.routes:
                known = nearest(step, self.routes) or f"; routes are {listed([*self.routes])}"
                raise ValueError(f"routes.{name}.then: `{shortened(step)}` is no route{known}")
            if self.routes[step].then:
                raise ValueError(
                    f"routes.{name}.then: `{shortened(step)}` has a `then` of its own; "
                    "write the chain out here"
                )
        for parameter in route.set_parameters():
            if not takes(task, parameter):
                raise ValueError(f"routes.{name}.{parameter}: the task {task} has no such parameter")

    def task_of(self, route: str) -> str:
        """The generation task of a route."""
        return self.routes[route].task or route

    def fallback_route(self) -> str | None:
        """The route of rows that name none, or None where such rows are a mistake."""
        if self.default_route is not None:
            return self.default_route
        return next(iter(self.routes)) if len(self.routes) == 1 else None
