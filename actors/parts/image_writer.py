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

    def write(self, name: str, pixels: Pixels) -> StoredImage:
        """An image, encoded in the format of the spec."""
        return self._write(name, pixels, self._spec.format)

    def write_depth(self, name: str, depth: Depth) -> StoredImage:
        """A depth map, encoded as a PNG whatever the spec says: no other format has sixteen bits."""
        return self._write(name, depth, "png")

    def _write(self, name: str, pixels: Pixels | Depth, image_format: str) -> StoredImage:
        data = encode(pixels, image_format)
        file_name = f"{self._shard.name}-{name}.{MEDIA_ENDINGS[image_format]}"
        path = file_name if self._spec.images == "parquet" else self._create(file_name, data)
        return StoredImage(data=data, path=path)

    def _create(self, file_name: str, data: bytes) -> str:
        """The URI of the image's own object. The object is created now, unless this is a rehearsal."""
        content_hash = hashlib.sha256(data).hexdigest()[:16]
        uri = self._output.uri(image_file(self._shard.name, content_hash, file_name))
        if self._shard.rehearse is None:
            self._output.storage.create(uri, data, {})
        return uri
