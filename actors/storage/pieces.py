"""Large objects on S3, which are uploaded in pieces.

Each piece is repeated by itself, and only the last request, which completes the upload, makes the object. The
condition of a write is the condition of that request.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Protocol, TypeVar

from actors.storage.objects import Buffer
from actors.storage.s3_errors import PreconditionError, UploadGoneError
from schemas.errors import DarkroomError

logger = logging.getLogger(__name__)
T = TypeVar("T")
U = TypeVar("U")

PIECE_BYTES = 32 * 2**20
"""The size of a piece, unless that makes too many of them. S3 takes no smaller ones than 5 MiB."""
MAX_PIECES = 10_000
"""S3's limit for one upload."""
DROP_WITHIN_S = 30.0
"""How long it is tried to drop an upload, in seconds. Whoever waits for that has other news to tell."""

NUM_WRITERS = 16
"""The uploads of one object that are completed at once, to see which of them the store lets win."""
FEWEST_WRITERS = 12
"""Those that lose are used for the next race, as long as they are so many."""
NUM_TRIALS = 6
"""How often uploads for a few races are made. A store that looks at the condition first and writes then, as
SeaweedFS does, lets several win in about every third trial."""
HASTY_STORES = ("SeaweedFS",)
"""Stores of which this is known, by the name in their answers. SeaweedFS 4.48: in 10 of 80 races of 8 uploads
several won, and in none of 40 races of single requests."""

Complete = Callable[..., None]
"""A function that makes an upload the object, under the condition in its arguments."""


class Request(Protocol):
    """A request to the store, repeated until it is answered; `S3Storage` says with which errors it fails."""

    def __call__(
        self,
        operation: str,
        uri: str,
        arguments: Mapping[str, Any],
        *,
        num_bytes: int = 0,
        deadline_s: float | None = None,
    ) -> dict[str, Any]:
        """The reply. `num_bytes`: what the store has to take in, or to put together."""


@contextmanager
def uploaded(
    request: Request, uri: str, address: Mapping[str, str], data: Buffer, metadata: Mapping[str, str]
) -> Iterator[Complete]:
    """Upload an object's content, and yield what completes the upload.

    The upload is dropped at the end of the block if that was not done. UploadGoneError where somebody else
    has dropped it, or the store asks for all of it again.
    """
    reply = request("create_multipart_upload", uri, {**address, "Metadata": metadata})
    upload = {**address, "UploadId": reply["UploadId"]}
    is_complete = False

    def complete(**condition: str) -> None:
        nonlocal is_complete
        arguments = {**upload, "MultipartUpload": {"Parts": pieces}, **condition}
        request("complete_multipart_upload", uri, arguments, num_bytes=memoryview(data).nbytes)
        is_complete = True

    try:
        pieces = [*_upload_pieces(request, uri, upload, data)]
        yield complete
    finally:
        if not is_complete:
            drop(request, uri, upload)


def _upload_pieces(
    request: Request, uri: str, upload: Mapping[str, str], data: Buffer
) -> Iterator[dict[str, Any]]:
    """Upload the pieces in order; of each one, what the store wants to hear again at the end.

    botocore adds a checksum to each, with which the store compares what has come.
    """
    content = memoryview(data)
    size = max(PIECE_BYTES, -(-content.nbytes // MAX_PIECES))
    for number, start in enumerate(range(0, content.nbytes, size), 1):
        body = bytes(content[start : start + size])
        arguments = {**upload, "PartNumber": number, "Body": body}
        reply = request("upload_part", uri, arguments, num_bytes=len(body))
        yield {"PartNumber": number, "ETag": reply["ETag"]}


def one_wins(request: Request, uri: str, address: Mapping[str, str]) -> bool:
    """Whether the store lets exactly one of several uploads become the object, as far as trials can tell.

    There must be no object at `uri`; one may be there afterwards only if this raises an error.
    """
    with ThreadPoolExecutor(NUM_WRITERS) as threads:
        return all(_one_wins_each_race(request, uri, address, threads) for _ in range(NUM_TRIALS))


def _one_wins_each_race(
    request: Request, uri: str, address: Mapping[str, str], threads: ThreadPoolExecutor
) -> bool:
    """Whether no race of these uploads has two winners; the losers of each race are those of the next.

    A race without a winner proves nothing, because a reply can be lost; a trial without one does.
    """

    def upload(_: int) -> Complete:
        return uploads.enter_context(uploaded(request, uri, address, b"x", {}))

    num_won = 0
    with ExitStack() as uploads:
        racers = _each(threads, upload, range(NUM_WRITERS))
        while len(racers) >= FEWEST_WRITERS:
            results = _each(threads, _result, racers)
            request("delete_object", uri, address)
            if results.count("won") > 1:
                return False
            num_won += results.count("won")
            racers = [racer for racer, result in zip(racers, results, strict=True) if result == "lost"]
    return num_won > 0


def _each(threads: ThreadPoolExecutor, do: Callable[[T], U], items: Iterable[T]) -> list[U]:
    """The results of `do` for all items, at once. An error is raised when nothing runs any more."""
    futures = [threads.submit(do, item) for item in items]
    wait(futures)
    return [future.result() for future in futures]


def _result(complete: Complete) -> str:
    """What came of a completion for which there must not be an object: `won`, `lost`, or `gone`."""
    try:
        complete(IfNoneMatch="*")
    except PreconditionError:
        return "lost"
    except UploadGoneError:
        return "gone"  # A reply was lost, or the store wants all of it again.
    return "won"


def drop(request: Request, uri: str, upload: Mapping[str, str]) -> None:
    """Drop an upload, if the store is there to do it. It would be stored, unseen, and paid for."""
    try:
        with suppress(UploadGoneError):
            request("abort_multipart_upload", uri, upload, deadline_s=DROP_WITHIN_S)
    except DarkroomError as error:
        logger.warning("an unfinished upload stays in the bucket, unseen: %s", error)


def drop_all(request: Request, uri: str, bucket: str, prefix: str) -> None:
    """Drop all uploads of objects whose keys begin with `prefix`, as far as the store lets us."""
    arguments = {"Bucket": bucket, "Prefix": prefix}
    try:
        while True:
            page = request("list_multipart_uploads", uri, arguments, deadline_s=DROP_WITHIN_S)
            for upload in page.get("Uploads", []):
                drop(request, uri, {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]})
            if not page.get("IsTruncated"):
                return
            arguments["KeyMarker"] = page["NextKeyMarker"]
            arguments["UploadIdMarker"] = page["NextUploadIdMarker"]
    except (DarkroomError, FileNotFoundError) as error:
        logger.info("unfinished uploads were not looked for: %s", error)
