"""Large objects on S3, which are uploaded in pieces.

Each piece is repeated by itself, and only the last request, which completes the upload, makes the object. The
condition of a write is the condition of that request.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from actors.storage.objects import Buffer
from actors.storage.s3_errors import UploadGoneError
from schemas.errors import DarkroomError

logger = logging.getLogger(__name__)

PIECE_BYTES = 32 * 2**20
"""The size of a piece, unless that makes too many of them. S3 takes no smaller ones than 5 MiB."""
MAX_PIECES = 10_000
"""S3's limit for one upload."""
DROP_WITHIN_S = 30.0
"""How long it is tried to drop an upload, in seconds. Whoever waits for that has other news to tell."""


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
) -> Iterator[Callable[..., None]]:
    """Upload an object's content; a function that makes it the object, under the condition in its arguments.

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
        logger.warning("unfinished uploads were not looked for: %s", error)
