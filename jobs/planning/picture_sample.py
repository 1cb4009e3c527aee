"""A sample of the images that rows name by URI, and a look at each of them."""

import heapq
import math
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from actors.images.image_uris import ImageUris
from actors.images.input_images import ImageSource, open_image
from actors.inputs.input_file import InputFile
from actors.rows.checks import CheckedBatch
from actors.rows.routing import ResolvedRoute
from actors.storage.stores import Stores
from schemas.errors import RowError

SAMPLE_SIZE = 64
"""The images that are looked at. Each is fetched whole, and its header is read."""
LOOKS_AT_ONCE = 16
_Z = 1.96
"""The quantile of the normal distribution for an interval of 95 %."""


@dataclass(frozen=True, slots=True, order=True)
class Picture:
    """An image that a row names by URI."""

    rank: float
    """A random number from 0 to 1. The pictures with the least ones are the sample."""
    file: str
    """The URI of the row's input file."""
    row: int
    """The row's number in the file, from 0."""
    field: str
    uri: str
    location: str = ""
    """Where the row is in the file, for a message; empty before `locate`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LookedAt:
    """What came of a look at a sample."""

    num_pictures: int = 0
    """The images that all rows together name."""
    num_looked: int = 0
    """The images that were looked at."""
    unreadable: tuple[tuple[Picture, RowError], ...] = ()
    """Those of them that cannot be read, in the order of files and rows."""

    @property
    def least_unreadable(self) -> float:
        """The images of all rows that cannot be read, estimated low: in 39 of 40 samples there are more.

        The share is the lower end of Wilson's interval, with the correction for a sample that is a large part
        of the whole.
        """
        if not self.unreadable:
            return 0.0
        n, share = self.num_looked, len(self.unreadable) / self.num_looked
        z2 = _Z**2 * (self.num_pictures - n) / max(self.num_pictures - 1, 1)
        spread = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n)))
        return self.num_pictures * (share + z2 / (2 * n) - spread) / (1 + z2 / n)


class PictureSample:
    """The pictures with the least ranks, of all that were added. The same rows give the same sample."""

    def __init__(self) -> None:
        self._num_pictures = 0
        self._pictures: list[Picture] = []

    def add(self, checked: CheckedBatch, file: str) -> None:
        """Add the images that the rows of a batch of a file need and may read."""
        batch = checked.batch
        draw = np.random.default_rng([zlib.crc32(file.encode()), batch.first_row])
        fit = np.ones(batch.num_rows, dtype=bool)
        fit[list(checked.problems)] = False
        for field, uris in batch.uris.items():
            reading = [
                position
                for position, route in enumerate(checked.routes)
                if isinstance(route, ResolvedRoute) and field in route.read_images()
            ]
            has_uri = uris.is_valid().to_numpy(zero_copy_only=False)
            rows = np.flatnonzero(has_uri & fit & np.isin(checked.route_positions, reading))
            ranks = draw.random(len(rows))
            least = np.argsort(ranks)[:SAMPLE_SIZE].tolist()
            pictures = [
                Picture(float(ranks[i]), file, batch.first_row + int(rows[i]), field, uris[rows[i]].as_py())
                for i in least
            ]
            self._add(pictures, len(rows))

    def locate(self, opened: InputFile) -> None:
        """Find out where the rows are in their file, which is that of all pictures so far."""
        locations = opened.locations([picture.row for picture in self._pictures])
        self._pictures = [
            replace(picture, location=location)
            for picture, location in zip(self._pictures, locations, strict=True)
        ]

    def merge(self, other: "PictureSample") -> None:
        """Add the pictures of another sample."""
        self._add(other._pictures, other._num_pictures)

    def _add(self, pictures: Sequence[Picture], num_pictures: int) -> None:
        self._num_pictures += num_pictures
        self._pictures = heapq.nsmallest(SAMPLE_SIZE, [*self._pictures, *pictures])

    def look(self, folders: Sequence[str], stores: Stores) -> LookedAt:
        """Fetch the pictures of the sample and read their headers. Errors of the storage itself are raised.

        `folders`: those in input.pictures.
        """
        uris = ImageUris(stores, folders)

        def error_of(picture: Picture) -> RowError | None:
            try:
                open_image(picture.field, ImageSource(data=None, uri=picture.uri), uris.reader(picture.file))
            except RowError as error:
                return error
            return None

        pictures = sorted(self._pictures, key=lambda picture: (picture.file, picture.row, picture.field))
        with ThreadPoolExecutor(LOOKS_AT_ONCE) as pool:
            errors = [*pool.map(error_of, pictures)]
        return LookedAt(
            num_pictures=self._num_pictures,
            num_looked=len(pictures),
            unreadable=tuple(
                (picture, error) for picture, error in zip(pictures, errors, strict=True) if error
            ),
        )
