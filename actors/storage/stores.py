"""The storage of a URI: local disk or S3.

A process builds its own `Storage` from a URI and never sends it to another process. Credentials, region and
endpoint come from the environment alone.
"""

from actors.storage.local_disk import LocalStorage
from actors.storage.objects import Storage
from actors.storage.uris import S3_SCHEME, join, normalise
from schemas.output_layout import OWN_FOLDER, TEMPORARY_FOLDER


class Stores:
    """The storages of a process: all local files share one, and all objects on S3 share one client."""

    def __init__(self, deadline_s: float = 900.0) -> None:
        """`deadline_s`: as for `open_storage`."""
        self._deadline_s = deadline_s
        self._opened: dict[str, Storage] = {}

    def of(self, uri: str) -> Storage:
        """The storage that holds `uri`, which `normalise` returned."""
        root = S3_SCHEME + "any" if uri.startswith(S3_SCHEME) else "/"
        if root not in self._opened:
            self._opened[root] = open_storage(root, deadline_s=self._deadline_s)
        return self._opened[root]


def open_storage(
    uri: str, *, timeout_s: float = 60.0, deadline_s: float = 900.0, in_pieces: bool | None = None
) -> Storage:
    """A new storage that holds `uri`; SpecError where the URI cannot be used.

    One try of a request may take `timeout_s`, and more for a large upload. A request is repeated until
    `deadline_s` has passed, then it raises StorageError. Both only matter for S3: a local disk answers or
    fails at once. `in_pieces`: what `takes_pieces` has said of the same place, so that it is not asked again.
    """
    root = normalise(uri)
    if root.startswith(S3_SCHEME):
        # Deferred: it loads botocore and aiohttp, which takes most of a second that local jobs do not need.
        from actors.storage.s3 import S3Storage

        return S3Storage(timeout_s=timeout_s, deadline_s=deadline_s, in_pieces=in_pieces)
    return LocalStorage(temp_dir=join(root, OWN_FOLDER, TEMPORARY_FOLDER))
