"""The images of an output that are objects of their own, read back."""

from actors.images.input_images import MAX_IMAGE_FILE_BYTES
from actors.storage.output import Output
from schemas.errors import DarkroomError, RowError
from schemas.output_layout import IMAGES_FOLDER


def read_image(output: Output, uri: str) -> bytes:
    """The bytes of an image that is an object of its own.

    `uri`: its path below the output, or its whole URI, as in the parts of earlier versions. The object is
    looked up by name in this output, which may have been copied since. RowError where it cannot be read, or
    is not an image of this output: a part may name anything.
    """
    name = f"/{uri}".rpartition(f"/{IMAGES_FOLDER}/")[2]
    if not name or ".." in name.split("/"):
        raise RowError("disallowed_uri", f"{uri} is not an image of this output")
    image_uri = output.uri(f"{IMAGES_FOLDER}/{name}")
    try:
        return output.storage.read(image_uri, MAX_IMAGE_FILE_BYTES)
    except (FileNotFoundError, DarkroomError) as error:
        raise RowError("unreadable_uri", f"{image_uri} cannot be read: {error}") from error
