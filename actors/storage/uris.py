"""The one spelling of every URI that a spec or a row may name."""

import os
import re
from urllib.parse import unquote

from schemas.errors import RowError, SpecError
from schemas.wording.printable import shortened

S3_SCHEME = "s3://"
HUB_SCHEME = "hf://"
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")
_BUCKET = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
_SIGNATURE = re.compile(
    r"([?&][^=&]*(?:credential|key|password|secret|sig|token)[^=&]*=)[^&]*", re.IGNORECASE
)
_QUERY = re.compile(r"\?[^/?]*=")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_BASE64_IMAGES = ("iVBORw0KGgo", "/9j/", "UklGR", "R0lGOD")
"""The texts with which PNG, JPEG, WebP and GIF files begin in base64."""


def join(uri: str, *names: str) -> str:
    """The URI of `names` below `uri`."""
    return "/".join([uri.rstrip("/"), *names])


def normalise(uri: str) -> str:
    """The one spelling of a path from a spec: `s3://bucket/key`, or an absolute local path.

    SpecError for everything else that some library would accept: other schemes, chains such as
    `simplecache::s3://...`, credentials, query strings, and `..`.
    """
    if not uri or _CONTROL.search(uri):
        raise SpecError(f"{masked(uri)!r} is not a path: it is empty or has control characters")
    if "::" in uri:
        raise SpecError(f"{masked(uri)!r}: chained paths ('::') are not supported; name the file itself")
    if uri.lower().startswith(S3_SCHEME):
        return _normalise_s3(uri)
    if uri.lower().startswith("file://"):
        return _normalise_file_uri(uri)
    if scheme := _SCHEME.match(uri):
        raise SpecError(f"{masked(uri)!r}: {scheme[0]} is not supported; use s3://, file:/// or a local path")
    return _normalise_local(uri, uri)


def _normalise_s3(uri: str) -> str:
    bucket, _, key = uri[len(S3_SCHEME) :].partition("/")
    # A secret key can have slashes.
    if "@" in bucket or (":" in bucket and "@" in key):
        raise SpecError(
            f"{masked(uri)!r}: credentials do not belong in a URI; set AWS_PROFILE or AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY in the environment of the driver and the workers"
        )
    if _QUERY.search(key):
        raise SpecError(f"{masked(uri)!r}: query strings are not supported; name the object itself")
    if not _BUCKET.match(bucket):
        raise SpecError(f"{uri!r}: {bucket!r} is not a bucket name; the form is s3://bucket/folder")
    _refuse_parent_segments(key, uri, "the key without it")
    return f"{S3_SCHEME}{bucket}/{key}".rstrip("/")


def _normalise_file_uri(uri: str) -> str:
    path = uri[len("file://") :]
    if "?" in path:
        raise SpecError(f"{masked(uri)!r}: query strings are not supported (a `?` in a name is %3F in a URI)")
    if not path.startswith("/"):
        raise SpecError(f"{masked(uri)!r}: the form is file:///absolute/path, with three slashes")
    return _normalise_local(unquote(path), uri)


def _normalise_local(path: str, uri: str) -> str:
    _refuse_parent_segments(path, uri, os.path.abspath(os.path.expanduser(path)))
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise SpecError(
            f"{uri!r}: the home folder of {path.split('/')[0]} is not known here; write it out, or ./{path} "
            "for a name that begins with ~"
        )
    return os.path.abspath(expanded)


def _refuse_parent_segments(path: str, uri: str, way_out: str) -> None:
    if ".." in path.split("/"):
        raise SpecError(f"{uri!r}: '..' is not allowed in a path; write {way_out}")


def not_a_place(text: str) -> RowError | None:
    """The error of a row whose text is no URI that could be read, but an image itself or a web address."""
    if text[:5].lower() == "data:" or text.startswith(_BASE64_IMAGES):
        return RowError(
            "image_as_text",
            "the text is not the place of an image but the image itself, in base64 or as a data URI; decode "
            "it into a column of bytes",
        )
    if text[:8].lower().startswith(("http://", "https://")):
        return RowError(
            "image_url",
            f"darkroom downloads nothing from the web ({shortened(masked(text))}); download the images, with "
            "img2dataset for example, and name the files",
        )
    return None


def masked(uri: str) -> str:
    """The URI for a message, without secrets: what precedes '@', and the signature of a signed link."""
    return _SIGNATURE.sub(r"\1***", re.sub(r"://.*@", "://***@", uri, flags=re.DOTALL))
