"""A job's YAML as types: one frozen model per section, strict, with unknown keys refused."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_core import PydanticKnownError

from schemas.spec.adapter_spec import AdapterSpec, ControlNetSpec, IpAdapterSpec
from schemas.spec.component_spec import ComponentSpec
from schemas.spec.plain_text import Name, Plain, shown_as_it_is
from schemas.systems.adapter_weights import unknown_adapter
from schemas.systems.parameters import Parameters, StrictModel
from schemas.systems.sampler_names import unknown_scheduler
from schemas.systems.system_table import TASKS, takes
from schemas.wording.nearest import did_you_mean
from schemas.wording.printable import listed, shortened


def _number_one(version: object) -> object:
    # pydantic takes true for Literal[1] too.
    if type(version) is not int or version != 1:
        raise PydanticKnownError("literal_error", {"expected": "1"})
    return version


FormatVersion = Annotated[Literal[1], BeforeValidator(_number_one)]


class InputSpec(StrictModel):
    """The input rows, and the meaning of their columns."""

    path: str | list[str] = Field(min_length=1)
    """A file, a folder, a pattern, or a list of these; local, s3:// or hf://. The rows may be Parquet, lines
    of text, CSV, TSV or JSON lines."""
    columns: dict[str, str | None] = Field(default_factory=dict)
    """Maps darkroom's field names to the input's columns: {prompt: caption}. null leaves a field unread."""
    keep: list[str] = Field(default_factory=list)
    """Input columns that are copied to the output."""
    pictures: list[str] = Field(default_factory=list)
    """More folders from which rows may name images: s3:// or absolute paths."""
    hash: Literal["whole", "ends"] = "whole"
    """How a changed local file is noticed. whole: by each byte of it; ends: by its size and by 64 KiB at both
    ends, for inputs that would take too long to read. On S3 the ETag tells each change."""
    max_pixels: int = Field(default=2048 * 2048, ge=64 * 64, le=8192 * 8192)
    """The largest image, in pixels, that a model may work on: `height` x `width`, or the input image."""

    @field_validator("path", "pictures")
    @classmethod
    def _shown_as_they_are(cls, paths: str | list[str]) -> str | list[str]:
        for path in [paths] if isinstance(paths, str) else paths:
            shown_as_it_is(path)
        return paths

    @field_validator("pictures")
    @classmethod
    def _absolute(cls, folders: list[str]) -> list[str]:
        for folder in folders:
            if folder.startswith(("/", "s3://", "file://")):
                continue
            scheme, colon, _ = folder.partition("://")
            # A relative path would mean another folder to a worker whose current folder is another one.
            problem = (
                f"{shortened(scheme)}:// is not supported" if colon else f"{shortened(folder)!r} is relative"
            )
            raise ValueError(f"{problem}; give an absolute path or an s3:// URI")
        return folders


class ModelSpec(StrictModel):
    """One checkpoint, under the name that routes and rows use for it."""

    checkpoint: Name
    """A folder that `save_pretrained` wrote, a repository of the Hugging Face Hub, a single .safetensors file
    (local, s3:// or owner/name/file.safetensors on the Hub), or demo:KIND."""
    revision: Plain | None = None
    """A branch, tag or commit of the Hub repository."""
    variant: Plain | None = None
    """A variant of the weight files, such as fp16."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """The precision of the weights. auto: float16 on a GPU, float32 on a CPU."""
    loras: dict[Name, AdapterSpec] = Field(default_factory=dict)
    """The LoRAs that rows and routes may apply, by the names that they use for them."""
    controlnets: dict[Name, ControlNetSpec] = Field(default_factory=dict)
    """The ControlNets that rows and routes may use, by the names that they use for them."""
    embeddings: dict[Name, AdapterSpec] = Field(default_factory=dict)
    """The files of tokens that were learned by textual inversion, by the tokens as prompts have them."""
    ip_adapters: dict[Name, IpAdapterSpec] = Field(default_factory=dict)
    """The IP-Adapters that rows and routes may use, by the names that they use for them."""
    components: dict[Name, ComponentSpec] = Field(default_factory=dict)
    """Components that replace the checkpoint's own, by name: {vae: FOLDER_OR_REPOSITORY}."""

    @field_validator("embeddings")
    @classmethod
    def _tokens_are_words(cls, embeddings: dict[str, AdapterSpec]) -> dict[str, AdapterSpec]:
        for token in embeddings:
            if any(map(str.isspace, token)):
                raise ValueError(
                    f"the token {shortened(token)!r} has white space; write it as one word, in prompts too"
                )
        return embeddings

    @field_validator("checkpoint")
    @classmethod
    def _no_address(cls, checkpoint: str) -> str:
        if "://" in checkpoint and not checkpoint.startswith("s3://"):
            # The message does not quote the address, because addresses of repositories often contain a token.
            raise ValueError(
                "a checkpoint is a folder, a Hub repository such as owner/name, a file of one such as "
                "owner/name/file.safetensors, or demo:KIND, not an address"
            )
        if checkpoint.startswith("s3://") and not checkpoint.endswith(".safetensors"):
            raise ValueError("on S3, a checkpoint is a single file that ends in .safetensors, not a folder")
        return checkpoint

    @property
    def sources_text(self) -> str:
        """The checkpoint, and where its named components are from: `owner/xl, vae from owner/vae`."""
        named = [f"{name} from {source.path}" for name, source in self.components.items()]
        return ", ".join([self.checkpoint, *named])


class Route(Parameters):
    """How rows are processed whose `task` is the name of this route."""

    task: str | None = None
    """The generation task. Default: the route's own name."""
    model: Name
    """A key of `models`. A row's own `model` column overrides it."""
    then: list[Name] = Field(default_factory=list)
    """Routes that process the image next, in this order: a chain."""
    keep_steps: bool = False
    """true: also store the images of the steps before the last, in the column `step_images`."""

    @field_validator("task")
    @classmethod
    def _known_task(cls, task: str | None) -> str | None:
        if task is not None and task not in TASKS:
            raise ValueError(
                f"`{shortened(task)}` is not a task{did_you_mean(task, TASKS)}; tasks are {', '.join(TASKS)}"
            )
        return task

    @field_validator("scheduler")
    @classmethod
    def _known_scheduler(cls, scheduler: str | None) -> str | None:
        problem = scheduler and unknown_scheduler(scheduler)
        if problem:
            raise ValueError(problem)
        return scheduler


class OutputSpec(StrictModel):
    """Where the output is written, and how images are stored in it."""

    path: Name
    """A folder, local or s3://. It belongs to this job alone."""
    images: Literal["parquet", "files"] = "parquet"
    """parquet: the parts contain the images; files: each image is an object, and the parts contain URIs."""
    format: Literal["png", "webp", "jpeg"] = "png"
    """The format of images: png or webp, which are lossless, or jpeg of quality 95."""


class BatchingSpec(StrictModel):
    """How rows are split into shards and batches. The bits of the output depend on it."""

    shard_rows: int = Field(default=256, ge=1, le=100_000)
    """Input rows per part. When a worker dies, at most its unfinished parts are lost."""
    max_batch_rows: int = Field(default=16, ge=1, le=1024)
    """The maximum number of images in one batch."""
    exact: bool = False
    """true: generate each image with a plain diffusers call of its own, and so with the same bits; slower."""
    compile: bool = False
    """true: use torch.compile on the blocks of UNets and VAE decoders. It takes minutes at the start; each
    node keeps the result for later jobs."""

    @model_validator(mode="after")
    def _exclude_each_other(self) -> "BatchingSpec":
        if self.exact and self.compile:
            raise ValueError("`exact` and `compile` exclude each other: compiled code gives other bits")
        return self

    @property
    def padded_images(self) -> tuple[int, ...]:
        """The numbers of images, ascending, to which batches of a compiled UNet are padded."""
        # Near a full batch a step is a quarter, so that few rows are padding where most of the work is.
        return tuple(sorted({self.max_batch_rows * eighths // 8 for eighths in (1, 2, 4, 6, 8)} - {0}))

    @property
    def decoded_images(self) -> tuple[int, ...]:
        """The numbers of images, descending, that go through a compiled VAE decoder at once.

        Batches are cut into these, and not padded: a few images occupy a GPU as well as many.
        """
        return tuple(sorted({1, max(1, self.max_batch_rows // 4)}, reverse=True))


class KernelsSpec(StrictModel):
    """Which of torch's ways to compute are used. The bits of the output depend on them.

    The defaults are those of plain diffusers, as far as `batching.compile` leaves them.
    """

    attention: Literal["auto", "cudnn", "flash", "efficient"] = "auto"
    """The implementation of attention that a GPU tries first; the others follow, for what the first cannot
    compute. auto: torch's own order."""
    float32: Literal["auto", "tf32", "ieee"] = "auto"
    """How a GPU multiplies what is in float32. tf32: with 11 bits of each number; ieee: with all 24; auto:
    convolutions in TF32 and matrix products with all bits, as torch does."""
    vae_dtype: Literal["auto", "bfloat16"] = "auto"
    """The precision in which a VAE decodes that float16 does not hold, as XL's, beside a float16 UNet. auto:
    float32."""
    fuse_qkv: bool = False
    """true: the UNets compute the queries, keys and values of an attention in one matrix product."""
    channels_last: bool | Literal["auto"] = "auto"
    """true: the UNets and VAEs have the memory format channels-last. auto: with `batching.compile` on a
    GPU."""
    cudnn_benchmark: bool = False
    """true: cuDNN tries its algorithms for each shape, and takes the quickest. The same job may then give
    other bits the next time."""

    def departures(self) -> list[str]:
        """The keys whose values can give other bits than plain diffusers."""
        return [key for key, value in self if value not in ("auto", False)]


class SafetySpec(StrictModel):
    """How the safety checkers that come with checkpoints are used."""

    checker: Literal["on", "off"] = "on"
    """on: the checkpoint's own safety checker, if it has one, examines every image; off: none is loaded."""
    flagged: Literal["drop", "black", "keep"] = "drop"
    """What is stored of a flagged image: nothing (drop), a black image of its size (black), or the image
    itself (keep). In each case the row's status is `filtered`, and other rows do not change."""


MAX_CACHE_GB = 1_000_000


class WorkersSpec(StrictModel):
    """The workers, which are Ray actors. Nothing here changes an image on the same hardware."""

    num: int | Literal["auto"] = "auto"
    """The number of workers. auto: as many as the cluster's GPUs allow, or its CPUs if it has no GPU.
    Machines that its autoscaler can start count."""
    num_gpus: float | Literal["auto"] = "auto"
    """GPUs per worker: 1, a share of one, or 0. auto: 1 if the cluster has or can get GPUs, else 0."""
    num_cpus: int | Literal["auto"] = "auto"
    """CPUs per worker, and its number of torch threads on a CPU. auto: up to 4 with a GPU, else 1."""
    model_cache_gb: float | Literal["auto"] = "auto"
    """The maximum size, in GB, of the weights in one worker's memory. auto: 80 % of its share of the GPU's
    memory, or its share of half the machine's memory."""
    notice_s: float = Field(default=25, ge=0, le=86_400)
    """The time, in seconds, that a worker has to finish its current shard after a SIGTERM."""

    @field_validator("num", "num_cpus")
    @classmethod
    def _at_least_one(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError(f"{value} is too few; give 1 or more, or auto")
        return value

    @field_validator("num_gpus")
    @classmethod
    def _possible_in_ray(cls, value: float | str) -> float | str:
        if isinstance(value, (int, float)) and value > 1:
            raise ValueError(
                f"a worker computes on one GPU, so {value:g} would leave the others idle; give 1 "
                "or less, and every GPU gets a worker of its own"
            )
        if isinstance(value, (int, float)) and 0 < value < 0.0001:
            raise ValueError(
                f"{value:g} is less than Ray can give; give 0, a share from 0.0001 to 1, or auto"
            )
        return value

    @field_validator("model_cache_gb")
    @classmethod
    def _not_absurd(cls, value: float | str) -> float | str:
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
    """How many failures a job tolerates."""

    max_rate: float = Field(default=0.01, ge=0, le=1)
    """The share of input rows that may fail. If the plan already finds more, the job does not start. A run
    also stops if its first 100 rows all fail, unless this is 1."""
    max_attempts: int = Field(default=3, ge=1, le=100)
    """How many times one shard may kill its worker before the row responsible is searched for, or may fail in
    another way before the run leaves it out."""
    storage_deadline_s: float = Field(default=900, gt=0)
    """How long errors of storage and of the Hub are retried, in seconds, before the job gives up."""
    stall_timeout_s: float = Field(default=1200, gt=0)
    """The time without progress, in seconds, after which a worker is killed. It must exceed
    storage_deadline_s. Downloading, loading and compiling a model count as progress."""

    @model_validator(mode="after")
    def _stall_after_storage_deadline(self) -> "ErrorsSpec":
        if self.stall_timeout_s <= self.storage_deadline_s:
            raise ValueError(
                f"`stall_timeout_s` ({self.stall_timeout_s:g}) must be more than `storage_deadline_s` "
                f"({self.storage_deadline_s:g}): a worker that waits for storage is not stuck"
            )
        return self


class JobSpec(StrictModel):
    """One job: its input, models, routes and output."""

    version: FormatVersion
    """The version of the spec's format."""
    name: Name = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """The name of the job in reports and in the dataset card."""
    input: InputSpec
    models: dict[Name, ModelSpec] = Field(min_length=1)
    routes: dict[Name, Route] = Field(min_length=1)
    default_route: Name | None = None
    """The route of rows without a `task`. Default: the only route, if there is one route."""
    output: OutputSpec
    seed: int = Field(default=0, ge=0, lt=2**63)
    """A row without a seed gets one that is computed from this number and its row_id."""
    long_prompts: Literal["truncate", "chunk"] = "truncate"
    """What happens beyond the text encoder's 75 tokens. truncate: the rest is cut off, and recorded in a
    column such as `prompt_truncated`; chunk: the whole prompt is encoded, in windows of 75 tokens (not for
    Safe, whose pipeline takes only texts)."""
    prompt_weights: Literal["off", "compel"] = "off"
    """compel: read weights such as `(fox)1.5` and `snow-`, in the syntax of the library compel; off: read
    them as text."""
    safety: SafetySpec = SafetySpec()
    batching: BatchingSpec = BatchingSpec()
    kernels: KernelsSpec = KernelsSpec()
    workers: WorkersSpec = WorkersSpec()
    errors: ErrorsSpec = ErrorsSpec()

    @model_validator(mode="after")
    def _names_exist(self) -> "JobSpec":
        for name, route in self.routes.items():
            self._check_route(name, route)
        if self.default_route is not None and self.default_route not in self.routes:
            default = self.default_route
            raise ValueError(
                f"default_route: `{shortened(default)}` is not a route{did_you_mean(default, self.routes)}; "
                f"routes are {listed([*self.routes])}"
            )
        return self

    @model_validator(mode="after")
    def _loras_have_layers_of_their_own(self) -> "JobSpec":
        with_loras = [name for name, model in self.models.items() if model.loras]
        if self.kernels.fuse_qkv and with_loras:
            raise ValueError(
                f"kernels.fuse_qkv: model `{shortened(with_loras[0])}` has LoRAs, which change queries, keys "
                "and values one by one; leave out `fuse_qkv` or `loras`"
            )
        if self.batching.compile and with_loras:
            raise ValueError(
                f"batching.compile: model `{shortened(with_loras[0])}` has LoRAs, and each rank of theirs "
                "would be compiled anew, which takes minutes; leave out `compile` or `loras`"
            )
        return self

    @model_validator(mode="after")
    def _ip_adapters_have_attention_of_their_own(self) -> "JobSpec":
        chosen = {"batching.compile": self.batching.compile, "kernels.fuse_qkv": self.kernels.fuse_qkv}
        for name, model in self.models.items():
            for key in chosen if model.ip_adapters else ():
                if chosen[key]:
                    raise ValueError(
                        f"{key}: model `{shortened(name)}` has IP-Adapters, which change the attention of "
                        f"some rows of a batch; leave out `{key.split('.')[1]}` or `ip_adapters`"
                    )
        return self

    @model_validator(mode="after")
    def _exact_has_the_kernels_of_diffusers(self) -> "JobSpec":
        departures = self.kernels.departures()
        if self.batching.exact and departures:
            raise ValueError(
                f"`batching.exact` leaves no choice of kernels: remove {', '.join(departures)}, because "
                "plain diffusers computes in another way"
            )
        return self

    def _check_route(self, name: str, route: Route) -> None:
        if route.model not in self.models:
            raise ValueError(
                f"routes.{name}.model: `{shortened(route.model)}` is not a model"
                f"{did_you_mean(route.model, self.models)}; models are {listed([*self.models])}"
            )
        task = route.task or name
        if task not in TASKS:
            raise ValueError(
                f"routes.{name}: `{shortened(name)}` is not a task, so the route needs `task:` "
                f"(one of {', '.join(TASKS)})"
            )
        for step in route.then:
            if step not in self.routes:
                hint = did_you_mean(step, self.routes) or f"; routes are {listed([*self.routes])}"
                raise ValueError(f"routes.{name}.then: `{shortened(step)}` is not a route{hint}")
            if self.routes[step].then:
                raise ValueError(
                    f"routes.{name}.then: `{shortened(step)}` has a `then` of its own; "
                    "write the chain out here"
                )
        for parameter in route.set_parameters():
            if not takes(task, parameter):
                raise ValueError(f"routes.{name}.{parameter}: the task {task} has no such parameter")
        for lora in route.loras or {}:
            if problem := unknown_adapter("LoRA", lora, route.model, self.models[route.model].loras):
                raise ValueError(
                    f"routes.{name}.loras: {problem}. Name its file in models.{shortened(route.model)}.loras"
                )
        adapter, adapters = route.ip_adapter, self.models[route.model].ip_adapters
        if adapter and (problem := unknown_adapter("IP-Adapter", adapter, route.model, adapters)):
            raise ValueError(
                f"routes.{name}.ip_adapter: {problem}. Name its file in "
                f"models.{shortened(route.model)}.ip_adapters"
            )
        for number, (start, end) in enumerate(route.control_ranges()):
            if start >= end:
                key = f".controls.{number - 1}" if number else ""
                raise ValueError(
                    f"routes.{name}{key}: control_guidance_start, {start:g}, must be below "
                    f"control_guidance_end, {end:g}"
                )
        key, nets = "controls" if route.controls else "controlnet", self.models[route.model].controlnets
        for net in route.controlnets():
            if problem := unknown_adapter("ControlNet", net, route.model, nets):
                raise ValueError(
                    f"routes.{name}.{key}: {problem}. Name it in models.{shortened(route.model)}.controlnets"
                )

    def task_of(self, route: str) -> str:
        """The generation task of a route."""
        return self.routes[route].task or route

    def fallback_route(self) -> str | None:
        """The route of rows that name none, or None if every row must name its route."""
        if self.default_route is not None:
            return self.default_route
        return next(iter(self.routes)) if len(self.routes) == 1 else None
