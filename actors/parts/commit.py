"""The commit protocol: a part is committed by the one create-only write that puts it in its place."""

import uuid
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from actors.storage.objects import Buffer, Storage
from actors.storage.output import Output
from schemas.errors import RefusedError, StorageError
from schemas.output_layout import JOB_KEY, OWN_FOLDER, SHARD_KEY


@dataclass(frozen=True, slots=True, kw_only=True)
class PartIdentity:
    """Whose a part is. It is written into the part's footer and into the object's metadata."""

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
    """True: the part of this attempt is the committed one. False: another one is; ours is dropped.

    `replaces`: the etag of the part whose place it takes; None: there is to be none.
    RefusedError where the place is taken by another job, another shard, or something that is no part.
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
            f"{uri}: is there already and belongs to job {owner.get('job')!r}, shard {owner.get('shard')!r}, "
            f"while this is job {identity.job!r}, shard {identity.shard!r}; give this job an output.path "
            "of its own"
        )
    # Ours although the store said no: the reply to the write was lost, and its repetition met it.
    return owner.get("attempt") == attempt


def _owner(storage: Storage, uri: str) -> dict[str, str]:
    """Job, shard and (where the store keeps metadata) attempt of the part at `uri`."""
    try:
        metadata = storage.metadata(uri)
        # Tools that copy objects drop metadata or leave some of their own.
        return metadata if "job" in metadata else _footer_owner(storage, uri)
    except FileNotFoundError as error:
        raise StorageError(
            f"{uri}: the store says both that it exists and that it does not; was it deleted just now?"
        ) from error


def _footer_owner(storage: Storage, uri: str) -> dict[str, str]:
    try:
        with storage.open(uri) as file:
            footer = pq.read_metadata(file).metadata or {}
    except pa.ArrowInvalid as error:
        raise RefusedError(
            f"{uri}: is there already and is not a Parquet file ({error}); move it away"
        ) from error
    owned = {"job": footer.get(JOB_KEY), "shard": footer.get(SHARD_KEY)}
    return {name: value.decode() for name, value in owned.items() if value is not None}


def probe(output: Output) -> None:
    """Prove that this store lets only the first of two writers create an object, and replaces one only where
    it is the one that was meant; RefusedError otherwise."""
    storage, uri = output.storage, output.uri(f"{OWN_FOLDER}/probe-{uuid.uuid4().hex}")
    first, second = b"first", b"second"
    # The first answer does not matter: when a reply is lost it is False, and nobody else knows this name.
    storage.create(uri, first, {})
    created_twice = storage.create(uri, second, {})
    found = _read_or_none(storage, uri)
    exchanged = storage.exchange(uri, second, {}, etag="0" * 32)
    left = _read_or_none(storage, uri)
    storage.delete(uri)
    if created_twice or found != first:
        raise RefusedError(
            f"{output.path}: this store does not honour conditional writes (If-None-Match: *): a second "
            f"create was {'accepted' if created_twice else 'refused'} and left {found!r} where {first!r} "
            f"stood. Two workers could overwrite each other's parts. {_STORES}"
        )
    if exchanged or left != first:
        raise RefusedError(
            f"{output.path}: this store does not honour conditional writes (If-Match): a replacement of "
            f"another object than the one that is there was {'accepted' if exchanged else 'refused'}, and "
            f"{left!r} stands where {first!r} stood. `darkroom retry` could lose rows. {_STORES}"
        )


_STORES = (
    "Stores that work: AWS S3, Cloudflare R2, MinIO, SeaweedFS and local disks; `rclone serve s3` and others "
    "that ignore the headers do not"
)


def _read_or_none(storage: Storage, uri: str) -> bytes | None:
    with suppress(FileNotFoundError):
        return storage.read(uri)
    return None
