"""What the driver and its workers tell each other: the job, its shards, their progress and their reports."""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from pydantic import Field, FiniteFloat

from schemas.columns.input_columns import ColumnMap
from schemas.errors import DEVICE_DEPENDENT
from schemas.spec.adapter_spec import AdapterSpec, ControlNetSpec, IpAdapterSpec
from schemas.spec.component_spec import ComponentSpec
from schemas.spec.job_spec import JobSpec, ModelSpec
from schemas.systems.control_parameters import CONTROL
from schemas.systems.image_prompts import IP_ADAPTER
from schemas.systems.model_card import (
    AdapterFile,
    ComponentCard,
    ControlNetCard,
    EmbeddingFile,
    IpAdapterCard,
    ModelCard,
)

NO_MODEL = ""
"""The model of shards whose rows no model can take, such as rows with an unknown task."""

StoredCount = Annotated[int, Field(ge=0, lt=2**63)]
"""A count that is read back from an output: a whole number from 0 to 2**63 - 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedFile:
    """One file of the input, as the plan records it."""

    uri: str
    size_bytes: StoredCount
    etag: str
    """The store's fingerprint of the file's content. A worker that meets another one stops the job."""
    sha256: str = ""
    """The same for the hash of the whole content; empty on S3, or if `input.hash` is `ends`."""
    copy: str = ""
    """The path, relative to the output, of the Parquet copy that is read; empty: the file itself is read."""
    num_rows: StoredCount
    rows_by_model: Mapping[str, StoredCount]
    """The number of rows that are routed to each model. Rows that no model can take are under NO_MODEL."""
    repeated: Mapping[str, Sequence[StoredCount]] = field(default_factory=dict)
    """The rows that have the id of an earlier row of the input, by model.

    Rows are counted from 0 among this file's rows of that model.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Everything that a worker must know about a job, except its shards."""

    spec: JobSpec
    models: Mapping[str, ModelCard]
    columns: ColumnMap
    schema: bytes
    """The output's Arrow schema, serialised."""
    in_pieces: bool = False
    """Whether the output's store takes large parts in pieces, as the driver has found out."""

    @property
    def checkpoints(self) -> dict[str, ModelSpec]:
        """The models as workers load them: from the files or the Hub's commits that the driver resolved."""
        return {name: pinned(self.spec.models[name], card) for name, card in self.models.items()}

    @property
    def loras(self) -> dict[str, Mapping[str, AdapterFile]]:
        """The LoRAs that rows may have, by model and name."""
        return {name: card.loras for name, card in self.models.items()}

    @property
    def controlnets(self) -> dict[str, Mapping[str, ControlNetCard]]:
        """The ControlNets that rows may use, by model and name."""
        return {name: card.controlnets for name, card in self.models.items()}

    @property
    def embeddings(self) -> dict[str, Mapping[str, EmbeddingFile]]:
        """The learned tokens that prompts may have, by model and token."""
        return {name: card.embeddings for name, card in self.models.items()}

    @property
    def ip_adapters(self) -> dict[str, Mapping[str, IpAdapterCard]]:
        """The IP-Adapters that rows may have, by model and name."""
        return {name: card.ip_adapters for name, card in self.models.items()}

    @property
    def fingerprint(self) -> str:
        """A hash that two jobs share exactly when their parts must be equal byte for byte."""
        return fingerprint_of(self.identity())

    def identity(self) -> dict[str, Any]:
        """Everything that determines the output, as JSON values.

        These are the spec without `name`, `input.path`, `input.pictures`, `input.hash`, `output.path`,
        `workers` and `errors`, the fields' columns, the models' revisions, and the hashes of their adapters.
        The files of the input, which may come to be more, are compared by their content.
        """
        spec = self.spec.model_dump(mode="json", exclude={"name", "workers", "errors"})
        spec["output"].pop("path")
        for section in (*spec["models"].values(), *spec["routes"].values()):
            # Jobs that were begun before there were these keys have no such entries.
            for key in (
                "components",
                "loras",
                "recipe",
                "controlnets",
                *CONTROL,
                "ip_adapters",
                *IP_ADAPTER,
                "embeddings",
            ):
                if section.get(key) in (None, {}):
                    section.pop(key, None)
            if "embeddings" in section:
                # Their order too: tokens get their numbers in it, by which XL's encoders find a text's end.
                section["embeddings"] = [[token, file] for token, file in section["embeddings"].items()]
        for key in ("path", "pictures", "hash"):
            spec["input"].pop(key)
        return {
            "spec": spec,
            "columns": dict(self.columns.fields),
            "models": revisions_of(self.models),
        }


def revisions_of(models: Mapping[str, ModelCard]) -> dict[str, str]:
    """The revision of each model and each component that is named by itself, and each adapter's hash."""
    revisions = {name: card.revision for name, card in models.items()}
    for name, card in models.items():
        revisions |= {f"{name}.components.{part}": each.revision for part, each in card.components.items()}
        revisions |= {f"{name}.loras.{lora}": file.sha256 for lora, file in card.loras.items()}
        revisions |= {f"{name}.controlnets.{net}": each.revision for net, each in card.controlnets.items()}
        revisions |= {f"{name}.embeddings.{token}": file.sha256 for token, file in card.embeddings.items()}
        for adapter, each in card.ip_adapters.items():
            key = f"{name}.ip_adapters.{adapter}"
            revisions |= {key: each.file.sha256, f"{key}.image_encoder": each.image_encoder.revision}
    return revisions


def pinned(model: ModelSpec, card: ModelCard) -> ModelSpec:
    """The model as its card resolved it: from that folder, or that commit of the Hub.

    A folder has no revision: the card has a digest of its files instead, which loading ignores.
    """
    return model.model_copy(
        update={
            "checkpoint": card.checkpoint,
            "revision": card.revision,
            "components": {part: component_spec(each) for part, each in card.components.items()},
            "loras": {name: _as_spec(file) for name, file in card.loras.items()},
            "controlnets": {net: net_spec(each) for net, each in card.controlnets.items()},
            "embeddings": {token: _as_spec(file) for token, file in card.embeddings.items()},
            "ip_adapters": {name: ip_adapter_spec(each) for name, each in card.ip_adapters.items()},
        }
    )


def component_spec(card: ComponentCard) -> ComponentSpec:
    """The component's entry in the spec, as it would name exactly this one."""
    return ComponentSpec(path=card.path, revision=card.revision, subfolder=card.subfolder)


def net_spec(card: ControlNetCard) -> ControlNetSpec:
    """The ControlNet's entry in the spec, as it would name exactly this one."""
    return ControlNetSpec(
        path=card.path, revision=card.revision, subfolder=card.subfolder or None, variant=card.variant
    )


def ip_adapter_spec(card: IpAdapterCard) -> IpAdapterSpec:
    """The IP-Adapter's entry in the spec, as it would name exactly these files."""
    file = _as_spec(card.file)
    return IpAdapterSpec(**file.model_dump(), image_encoder=component_spec(card.image_encoder))


def _as_spec(file: AdapterFile) -> AdapterSpec:
    """The adapter's entry in the spec, as it would name exactly this file."""
    return AdapterSpec(
        path=file.path,
        weight_name=file.weight_name,
        subfolder=file.subfolder,
        revision=file.revision,
    )


def fingerprint_of(identity: Mapping[str, Any]) -> str:
    """The fingerprint of the job with this identity: 32 hexadecimal digits."""
    text = json.dumps(identity, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """The rows that become one part: a range of the rows of one file that go to one model."""

    index: int
    """The shard's position among all shards of the job, from 0."""
    name: str
    """The name of the shard, and of its part without the ending; names sort as the shards do."""
    uri: str
    """The URI of the input file."""
    etag: str
    """The store's fingerprint of the file's content when the job was planned."""
    model: str
    """A key of the spec's models, or NO_MODEL."""
    start: int
    """The first row, counted from 0 among this file's rows of this model."""
    stop: int
    """The row after the last one, counted in the same way."""
    sha256: str = ""
    """The hash of the file's whole content when the job was planned; empty: only the etag is compared."""
    copy: str = ""
    """The URI of the Parquet copy in which the rows are read; empty: in the file itself."""
    file_name: str = ""
    """The name with which the ids of this file's rows begin if the input has no ids."""
    repeated: tuple[int, ...] = ()
    """Positions in the shard of rows that have an earlier row's id: recorded as failed, and not generated."""
    skip: tuple[int, ...] = ()
    """Positions in the shard of rows that kill their worker: recorded as failed, and not generated."""
    rehearse: tuple[int, int] | None = None
    """The positions [first, end) in the shard of the only rows that are generated; no part is written then.

    None: all rows are generated, and the part is written.
    """
    again: tuple[str, ...] | None = None
    """Error codes of the rows of an existing part that are generated again; empty: all of its failed rows.

    None: there is no part yet, and all rows are generated.
    """

    @property
    def num_rows(self) -> int:
        """The number of input rows in this shard."""
        return self.stop - self.start

    @property
    def rows_uri(self) -> str:
        """The URI of the Parquet file in which the rows are read."""
        return self.copy or self.uri


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedRows:
    """The rows that failed with one error code."""

    num_rows: int
    message: str
    """The error message of the first of these rows."""


def merge_failed_rows(failures: Iterable[Mapping[str, FailedRows]]) -> dict[str, FailedRows]:
    """The failed rows of all these mappings together, by error_code."""
    merged: dict[str, FailedRows] = {}
    for failed_rows in failures:
        for code, more in failed_rows.items():
            known = merged.get(code, FailedRows(num_rows=0, message=more.message))
            merged[code] = FailedRows(num_rows=known.num_rows + more.num_rows, message=known.message)
    return merged


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How long images of one kind have taken on one kind of device."""

    device: str
    """What the driver or the system calls the device, such as `NVIDIA H200`."""
    num_cpus: StoredCount
    """The threads that computed; 0: a GPU did."""
    model: str
    """A key of the spec's models."""
    checkpoint: str
    dtype: str
    """That of the spec: with `auto`, the device decides."""
    task: str
    pixels: StoredCount
    """The pixels of an image, at the size at which the model worked, to two significant digits."""
    images: StoredCount
    image_steps: StoredCount
    """The denoising steps of these images, as their rows ask for them."""
    guided_steps: StoredCount
    """Those of them that had guidance, for which the denoiser computes twice as much."""
    step_seconds: FiniteFloat
    """The device's seconds for denoising, with those of the host between two steps."""
    image_seconds: FiniteFloat
    """Its seconds for what an image needs once: texts and input images are encoded, latents are decoded."""

    @property
    def kind(self) -> tuple[str | int, ...]:
        """What speeds have in common that can be added."""
        return (
            self.device,
            self.num_cpus,
            self.model,
            self.checkpoint,
            self.dtype,
            self.task,
            self.pixels,
        )

    @property
    def seconds(self) -> float:
        """All seconds of the device."""
        return self.step_seconds + self.image_seconds

    @property
    def passes(self) -> int:
        """How often the denoiser computed an image: twice in a step with guidance."""
        return self.image_steps + self.guided_steps

    def __add__(self, other: "Speed") -> "Speed":
        sums = ("images", "image_steps", "guided_steps", "step_seconds", "image_seconds")
        return replace(self, **{name: getattr(self, name) + getattr(other, name) for name in sums})


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSnapshot:
    """The results so far of a shard that is not committed."""

    images: int = 0
    """The number of images that were generated, with those that a safety checker withholds."""
    unforeseen: Mapping[str, FailedRows] = field(default_factory=dict)
    """The rows that failed although the plan found nothing wrong with them, by error_code."""

    def without(self, codes: Collection[str]) -> "ShardSnapshot":
        """The same snapshot, without the rows that failed with one of these codes."""
        kept = {code: failed for code, failed in self.unforeseen.items() if code not in codes}
        return replace(self, unforeseen=kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerProgress:
    """What a worker answers when the driver asks how far it is."""

    unfinished: Mapping[int, ShardSnapshot]
    """Snapshots of the shards that the worker has not committed yet, by the shard's index."""
    heartbeats: int
    """The number of steps of any kind since the worker started, such as rows read and batches run.

    It stops growing when the work stops.
    """
    leaving: bool
    """Whether the worker's process was asked to end; it starts no more shards then."""
    waits_for: str = ""
    """A request to the store or the Hub that has failed for a while, and why; empty if there is none."""
    phase: str = ""
    """What the worker is doing, such as `loading sd` or `denoising`; empty while it is idle."""
    num_steps: int = 0
    """How many denoising steps of single images it has run since it started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardReport:
    """The outcome of one shard, as the worker reports it to the driver: counts and seconds only."""

    index: int
    committed: bool
    """Whether this attempt stored the part.

    False: another attempt or driver had stored the same part already, or this was a rehearsal.
    """
    ok: int
    filtered: int
    failed: int
    """The numbers of input rows to which this attempt gave each outcome, without rows that a retry leaves."""
    images: int
    """The number of images that this attempt stored for these rows."""
    size_bytes: int
    """The size of the part."""
    failures: Mapping[str, FailedRows]
    """The rows that failed in this attempt, by error_code."""
    unforeseen: Mapping[str, FailedRows]
    """Those failed rows in which the plan had found nothing wrong, by error_code."""
    seconds: Mapping[str, float]
    """Seconds by stage: read, wait for the device, generate, write."""
    models_loaded: tuple[str, ...]
    """The models in the worker's memory now. The dispatcher prefers to give the worker shards of these."""
    num_loads: int
    """The number of checkpoints that this worker has loaded since it started."""
    worker: str
    """The worker's host and process id, as `HOST:PID`."""
    cpu_seconds: float
    """CPU time of the worker's process, in all its threads, since it started."""
    peak_rss_bytes: int
    """The largest resident memory of the worker's process so far."""
    peak_device_bytes: int = 0
    """The most memory of the worker's GPU that tensors have taken so far; 0 without a GPU."""
    speeds: tuple[Speed, ...] = ()
    """How long the shard's images took, by kind."""
    load_seconds: Mapping[str, float] = field(default_factory=dict)
    """By model, how long this worker has been loading it since it started, adapters included."""

    @property
    def num_device_dependent(self) -> int:
        """The number of rows that this attempt could not generate, and that another worker perhaps can."""
        return sum(self.unforeseen[code].num_rows for code in self.unforeseen.keys() & DEVICE_DEPENDENT)
