"""Where rows come from and parts go to: local disk or S3, behind one small interface.

`create` is the one operation everything else rests on: it writes a whole object or nothing, and of any
number of writers of one URI exactly one is told that it did. A process builds its own `Storage` from a
URI and never sends it to another; credentials, region and endpoint come from the environment alone.
"""

from actors.storage.local_disk import LocalStorage
from actors.storage.objects import Storage
from actors.storage.uris import S3_SCHEME, join, normalise


def open_storage(uri: str, *, timeout_s: float = 60.0, deadline_s: float = 900.0) -> Storage:
    """The storage that holds `uri`.

    One try of a request may take `timeout_s` (more for a large upload); a request is repeated until
    `deadline_s`, then raises StorageError. Both are about S3: local disk answers or fails at once.
    """
    root = normalise(uri)
    if root.startswith(S3_SCHEME):
        # Deferred: it loads botocore and aiohttp, most of a second that local jobs need not wait.
        from actors.storage.s3 import S3Storage

        return S3Storage(timeout_s=timeout_s, deadline_s=deadline_s)
    return LocalStorage(temp_dir=join(root, "_darkroom", "tmp"))
