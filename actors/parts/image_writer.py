"""A shard's images as files, inside its part or as objects of their own."""

import hashlib

from actors.images.encoding import MEDIA_ENDINGS, Depth, Pixels, encode
from actors.parts.part import StoredImage
from actors.storage.output import Output
from schemas.job import Shard
from schemas.output_layout import image_file
from schemas.spec.job_spec import OutputSpec


class ImageWriter:
    """Encodes the images of one shard. Several threads may use it."""

    def __init__(self, shard: Shard, spec: OutputSpec, output: Output) -> None:
        self._shard = shard
        self._spec = spec
        self._output = output

    def write(self, name: str, row_id: str | int, pixels: Pixels) -> StoredImage:
        """An image, encoded in the format of the spec. `name` tells it from all others of the shard."""
        return self._write(name, row_id, pixels, self._spec.format)

    def write_depth(self, name: str, row_id: str | int, depth: Depth) -> StoredImage:
        """A depth map, encoded as a PNG whatever the spec says: no other format has sixteen bits."""
        return self._write(name, row_id, depth, "png")

    def _write(self, name: str, row_id: str | int, pixels: Pixels | Depth, image_format: str) -> StoredImage:
        data, ending = encode(pixels, image_format), MEDIA_ENDINGS[image_format]
        if self._spec.images == "parquet":
            return StoredImage(data=data, path=f"{self._shard.name}-{name}.{ending}")
        content_hash = hashlib.sha256(data).hexdigest()[:16]
        path = image_file(self._shard.name, name, row_id, content_hash, ending)
        # A rehearsal writes nothing.
        if self._shard.rehearse is None:
            self._output.storage.create(self._output.uri(path), data, {})
        return StoredImage(data=data, path=path)
