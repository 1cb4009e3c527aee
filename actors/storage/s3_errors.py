"""The errors of an S3 client: which of them may pass, and which of ours they become."""

import aiohttp
from botocore.exceptions import (
    BotoCoreError,
    ChecksumError,
    ClientError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    ResponseStreamingError,
)
from botocore.exceptions import ConnectionError as StoreConnectionError
from botocore.parsers import ResponseParserError

from schemas.errors import RefusedError, StorageError

FOREIGN_ERRORS = (BotoCoreError, ClientError, aiohttp.ClientError, OSError)
"""The errors that a request to the store can raise."""
_TRANSIENT_ERRORS = (
    ChecksumError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    ResponseParserError,
    ResponseStreamingError,
    StoreConnectionError,
    aiohttp.ClientError,
    OSError,
)
_TRANSIENT_STATUSES = {408, 409, 425, 429}
# The store sends these with status 400.
_TRANSIENT_CODES = {
    "BadDigest",
    "IncompleteBody",
    "RequestTimeout",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "XAmzContentSHA256Mismatch",
}
_CHECK_ENVIRONMENT = (
    "check the credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID, a role), the region and AWS_ENDPOINT_URL in the "
    "environment"
)
_WHAT_TO_CHECK = {
    400: f"{_CHECK_ENVIRONMENT}; for a store that does not know checksums, set "
    "AWS_REQUEST_CHECKSUM_CALCULATION and AWS_RESPONSE_CHECKSUM_VALIDATION to when_required",
    403: "check the credentials, and that they may list, read and write here",
    404: "check the bucket's name and region",
}


class PreconditionError(Exception):
    """The store answered 412: the object is not in the state that the request requires."""


class UploadGoneError(Exception):
    """An upload in pieces does not exist any more, or has to be begun again."""


class EmptyRangeError(StorageError):
    """The store answered 416: the object has none of the bytes that the request asks for."""


class ChangedError(StorageError):
    """An object is another one than when its reader began."""

    def __init__(self, uri: str) -> None:
        super().__init__(f"{uri}: changed while it was being read; inputs must not change")


def _status(error: BaseException) -> tuple[int, str]:
    """(HTTP status, S3 error code); (0, "") for an error that did not come from the store."""
    if not isinstance(error, ClientError):
        return 0, ""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return int(status), str(error.response.get("Error", {}).get("Code", ""))


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later. With 409 it may: another conditional write was under
    way."""
    if not isinstance(error, ClientError):
        return isinstance(error, _TRANSIENT_ERRORS)
    status, code = _status(error)
    # botocore makes 500 of any error that a store sends after it has begun to answer with 200.
    if code == "PreconditionFailed" or _is_upload_gone(error):
        return False
    return (status >= 500 and status != 501) or status in _TRANSIENT_STATUSES or code in _TRANSIENT_CODES


def _is_upload_gone(error: ClientError) -> bool:
    """Whether an upload has to be begun again. AWS wants that after a conflict at its completion."""
    status, code = _status(error)
    is_conflict = status == 409 or code == "ConditionalRequestConflict"
    return code == "NoSuchUpload" or (is_conflict and error.operation_name == "CompleteMultipartUpload")


def trouble_of(error: BaseException) -> str:
    """What is wrong with the store, in one line; empty for an error that will not pass."""
    return describe(error) if is_transient(error) else ""


def converted_error(operation: str, uri: str, error: Exception, deadline_s: float) -> Exception:
    """The error to raise for the last `error` of a request that did not succeed within `deadline_s`."""
    description = describe(error)
    if is_transient(error):
        return StorageError(
            f"{uri}: {operation} did not succeed within {deadline_s:g} s; the last error: {description}. "
            "Check that the store and the network are up and that AWS_ENDPOINT_URL is right, then run "
            "again to resume"
        )
    status, code = _status(error)
    if isinstance(error, ClientError) and _is_upload_gone(error):
        return UploadGoneError(f"{uri}: {description}")
    if status == 412 or code == "PreconditionFailed":
        return PreconditionError(f"{uri}: {description}")
    if status == 416:
        return EmptyRangeError(f"{uri}: {description}")
    if status == 404 and code != "NoSuchBucket":
        return FileNotFoundError(uri)
    if status == 501:
        return RefusedError(
            f"{uri}: the store does not support what darkroom needs of {operation}: {description}"
        )
    return StorageError(
        f"{uri}: {operation} was refused: {description}; {_WHAT_TO_CHECK.get(status, _CHECK_ENVIRONMENT)}"
    )


def describe(error: BaseException) -> str:
    """An error as one line: the store's code, status and message, or the error's type and text."""
    status, code = _status(error)
    if isinstance(error, ClientError):
        return f"{code} (HTTP {status}): {error.response.get('Error', {}).get('Message', '')}"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
