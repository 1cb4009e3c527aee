"""Images of an output, read back from a part or from an object of their own."""

from actors.images.input_images import MAX_PICTURE_BYTES
from actors.storage.objects import Storage
from actors.storage.uris import join
from schemas.errors import DarkroomError, RowError


def read_picture(storage: Storage, output: str, uri: str) -> bytes:
    """A picture's own object. It is looked for in this output, which may have been copied since.

    RowError where it is not there, or is none of this output's: a part may name anything.
    """
    name = uri.rpartition("/images/")[2]
    if not name or ".." in name.split("/"):
        raise RowError("disallowed_uri", f"{uri} is no picture of this output")
    place = join(output, "images", name)
    try:
        return storage.read(place, MAX_PICTURE_BYTES)
    except (FileNotFoundError, DarkroomError) as error:
        raise RowError("unreadable_uri", f"{place} cannot be read: {error}") from error
