"""What the errors of an S3 client mean."""

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
# These come with status 400.
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
    "check what the environment says of credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID, a role), region and "
    "AWS_ENDPOINT_URL"
)
_WHAT_TO_CHECK = {
    403: "check the credentials, and that they may list, read and write here",
    404: "check the bucket's name and region",
}


class PreconditionError(Exception):
    """The store answered 412: the object is not in the state that the request asked for."""


def _status(error: BaseException) -> tuple[int, str]:
    """HTTP status and S3 error code; (0, "") for an error that is not the store's."""
    if not isinstance(error, ClientError):
        return 0, ""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return int(status), str(error.response.get("Error", {}).get("Code", ""))


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later: 409 is a conditional write that met another one."""
    if not isinstance(error, ClientError):
        return isinstance(error, _TRANSIENT_ERRORS)
    status, code = _status(error)
    return (status >= 500 and status != 501) or status in _TRANSIENT_STATUSES or code in _TRANSIENT_CODES


def verdict(operation: str, uri: str, error: Exception, deadline_s: float) -> Exception:
    """The error of ours that a request which did not succeed within `deadline_s` raises for the caller."""
    seen = describe(error)
    if is_transient(error):
        return StorageError(
            f"{uri}: {operation} did not succeed within {deadline_s:g} s; the last try: {seen}. "
            "Check that the store and the network are up and that AWS_ENDPOINT_URL is right, then run "
            "again to resume"
        )
    status, code = _status(error)
    if status == 412:
        return PreconditionError(f"{uri}: {seen}")
    if status == 404 and code != "NoSuchBucket":
        return FileNotFoundError(uri)
    if status == 501:
        return RefusedError(f"{uri}: the store cannot do what darkroom needs of {operation}: {seen}")
    return StorageError(
        f"{uri}: {operation} was refused: {seen}; {_WHAT_TO_CHECK.get(status, _CHECK_ENVIRONMENT)}"
    )


def describe(error: BaseException) -> str:
    """One line about an error: the store's code, status and message, or the error's type and text."""
    status, code = _status(error)
    if isinstance(error, ClientError):
        return f"{code} (HTTP {status}): {error.response.get('Error', {}).get('Message', '')}"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
