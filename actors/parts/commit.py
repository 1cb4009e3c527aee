"""The commit protocol: one create-only write puts a part in its place, and so commits it."""

import json
import uuid
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from actors.storage.objects import Buffer, Storage
from actors.storage.output import Output
from schemas.errors import DEVICE_DEPENDENT, RefusedError, StorageError
from schemas.output_layout import ERROR_CODES_KEY, JOB_KEY, OWN_FOLDER, SHARD_KEY


@dataclass(frozen=True, slots=True, kw_only=True)
class PartIdentity:
    """The job and the shard of a part. Both are in the part's footer and in the object's metadata."""

    job: str
    """The job's fingerprint."""
    shard: str
    """The shard's name."""

    def footer(self) -> dict[bytes, bytes]:
        """The entries of the part's footer."""
        return {JOB_KEY: self.job.encode(), SHARD_KEY: self.shard.encode()}


def commit_part(
    storage: Storage,
    uri: str,
    data: Buffer,
    identity: PartIdentity,
    *,
    attempt: str,
    replaces: str | None = None,
) -> bool:
    """Commit a part. True if this attempt's part is the committed one, False if another attempt's is.

    Where the store keeps no metadata, it is also False if it is this attempt's and the reply was lost.
    `replaces`: the etag of the part that is replaced, or None if no part may exist yet.
    RefusedError if the object at `uri` belongs to another job or shard, or is not a part.
    """
    metadata = {"job": identity.job, "shard": identity.shard, "attempt": attempt}
    if replaces is None:
        committed = storage.create(uri, data, metadata)
    else:
        committed = storage.exchange(uri, data, metadata, etag=replaces)
    if committed:
        return True
    owner = _owner(storage, uri)
    if (owner.get("job"), owner.get("shard")) != (identity.job, identity.shard):
        raise RefusedError(
            f"{uri} exists already and belongs to job {owner.get('job')!r}, shard {owner.get('shard')!r}, "
            f"while this is job {identity.job!r}, shard {identity.shard!r}; give this job an output.path "
            "of its own"
        )
    # It can be ours although the store said no: if the reply to a write is lost, the repeated write fails.
    return owner.get("attempt") == attempt


def replace_failures(
    storage: Storage, uri: str, data: Buffer, identity: PartIdentity, *, attempt: str
) -> bool:
    """Replace another attempt's part with rows that failed, perhaps only there. True if it was done.

    A broken machine may have committed it, and been given up before its report was heard. `data` is a part of
    the same shard without such rows.
    """
    stored = storage.stat(uri)
    if stored is None:
        return False
    if not DEVICE_DEPENDENT & json.loads(_footer(storage, uri).get(ERROR_CODES_KEY, b"{}")).keys():
        return False
    return commit_part(storage, uri, data, identity, attempt=attempt, replaces=stored.etag)


def _owner(storage: Storage, uri: str) -> dict[str, str]:
    """The `job`, `shard` and, if the store has metadata, `attempt` of the part at `uri`."""
    try:
        metadata = storage.metadata(uri)
        # Tools that copy objects drop the metadata, or write their own.
        return metadata if "job" in metadata else _footer_owner(storage, uri)
    except FileNotFoundError as error:
        raise StorageError(
            f"{uri}: the store says both that it exists and that it does not; was it deleted just now?"
        ) from error


def _footer_owner(storage: Storage, uri: str) -> dict[str, str]:
    footer = _footer(storage, uri)
    owner = {"job": footer.get(JOB_KEY), "shard": footer.get(SHARD_KEY)}
    return {name: value.decode() for name, value in owner.items() if value is not None}


def _footer(storage: Storage, uri: str) -> dict[bytes, bytes]:
    """The entries of the footer of the part at `uri`; RefusedError for anything but a Parquet file."""
    try:
        with storage.open(uri) as file:
            return pq.read_metadata(file).metadata or {}
    except pa.ArrowInvalid as error:
        raise RefusedError(
            f"{uri} exists already and is not a Parquet file ({error}); move it away"
        ) from error


def probe(output: Output) -> None:
    """Raise RefusedError if the output's store ignores the conditions of writes, or lacks what they need.

    Only the first of two writers may create an object, and an object may be replaced only if its etag is the
    one that the writer gives.
    """
    storage, uri = output.storage, output.uri(f"{OWN_FOLDER}/probe-{uuid.uuid4().hex}")
    first, second = b"first", b"second"
    # The first answer does not matter: it is False if a reply was lost, and nobody else uses this name.
    storage.create(uri, first, {})
    created_twice = storage.create(uri, second, {})
    after_create = _read_or_none(storage, uri)
    try:
        exchanged = storage.exchange(uri, second, {}, etag="0" * 32)
        after_exchange = _read_or_none(storage, uri)
    finally:
        storage.delete(uri)
    if created_twice or after_create != first:
        raise RefusedError(
            f"{output.path}: this store does not honour conditional writes (If-None-Match: *): a second "
            f"create was {'accepted' if created_twice else 'refused'} and left {after_create!r} in place of "
            f"{first!r}. Two workers could overwrite each other's parts. {_STORES}"
        )
    if exchanged or after_exchange != first:
        raise RefusedError(
            f"{output.path}: this store does not honour conditional writes (If-Match): a write with a wrong "
            f"etag was {'accepted' if exchanged else 'refused'} and left {after_exchange!r} in place of "
            f"{first!r}. `darkroom retry` could lose rows. {_STORES}"
        )


def takes_pieces(output: Output) -> bool:
    """Whether a part of any size can be committed here. The store is asked once, in a few requests."""
    return output.storage.takes_pieces(output.uri(f"{OWN_FOLDER}/probe-{uuid.uuid4().hex}"))


_STORES = (
    "Stores that work: AWS S3, Cloudflare R2, MinIO, SeaweedFS and local disks; `rclone serve s3` and others "
    "that ignore the headers do not"
)


def _read_or_none(storage: Storage, uri: str) -> bytes | None:
    with suppress(FileNotFoundError):
        return storage.read(uri)
    return None
