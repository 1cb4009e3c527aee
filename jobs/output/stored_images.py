"""Images of an output, read back from a part or from an object of their own."""

from actors.images.input_images import MAX_IMAGE_FILE_BYTES
from actors.storage.output import Output
from schemas.errors import DarkroomError, RowError
from schemas.output_layout import IMAGES_FOLDER


def read_image(output: Output, uri: str) -> bytes:
    """A picture's own object. It is looked for in this output, which may have been copied since.

    RowError where it is not there, or is none of this output's: a part may name anything.
    """
    name = uri.rpartition(f"/{IMAGES_FOLDER}/")[2]
    if not name or ".." in name.split("/"):
        raise RowError("disallowed_uri", f"{uri} is no picture of this output")
    place = output.uri(f"{IMAGES_FOLDER}/{name}")
    try:
        return output.storage.read(place, MAX_IMAGE_FILE_BYTES)
    except (FileNotFoundError, DarkroomError) as error:
        raise RowError("unreadable_uri", f"{place} cannot be read: {error}") from error
