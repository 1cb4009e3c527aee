"""The check of one part: whether it has exactly the outcomes of its shard's rows."""

import hashlib
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image

from actors.images.input_images import FORMATS
from actors.rows.routing import AnyRoute, ResolvedRoute, Router
from jobs.output.figures import Totals
from jobs.output.parts import totals_in
from schemas.columns.output_columns import NEVER_NULL, STATUSES
from schemas.errors import DarkroomError, RefusedError
from schemas.output_layout import JOB_KEY, SHARD_KEY
from schemas.spec.job_spec import JobSpec
from schemas.wording.amounts import counted
from schemas.wording.printable import shortened

DEPTH_MODE = "I;16"
"""Pillow's mode of a stored depth map: one channel of 16 bits."""
MAX_GROWTH = 16
"""The most pixels that a system gives for one pixel of its input: upscaled images are 4 times as wide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartVerdict:
    """The result of the check of one part."""

    rows: Counter[str]
    """The number of input rows by outcome."""
    images: int
    """The number of images that can be decoded and have the recorded checksum and size."""
    withheld: int
    """The number of images that a safety checker flagged and that were dropped, as the spec says."""
    faults: list[str]
    """One message for each breach of the row contract."""


class PartCheck:
    """A check of one part, which is given the part's footer and then its rows in order."""

    def __init__(
        self, name: str, ids: list[Any], spec: JobSpec, router: Router, read_image: Callable[[str], bytes]
    ) -> None:
        """`ids`: the row ids that the part must have, in order.

        `read_image`: a function that returns the bytes of an image which is not in the part itself, by URI.
        """
        self.name = name
        self._ids = ids
        self._flagged = spec.safety.flagged
        self._max_pixels = spec.input.max_pixels * MAX_GROWTH
        self._router = router
        self._read_image = read_image
        self._outcomes: list[str] = []
        self._last_index = -1
        self._stored = 0
        """The number of rows that have an image."""
        self._images = 0
        self._withheld = 0
        self._error_codes: Counter[str] = Counter()
        self._totals: Totals | None = None
        """The counts that are in the part's footer."""
        self.faults: list[str] = []

    def footer(self, metadata: dict[bytes, bytes], fingerprint: str) -> None:
        """Check the footer: it must name this job and shard, and have counts."""
        job, shard = (metadata.get(key, b"").decode(errors="replace") for key in (JOB_KEY, SHARD_KEY))
        if (job, shard) != (fingerprint, self.name):
            self.faults.append(f"{self.name} says it is shard {shard!r} of job {job!r}")
        try:
            self._totals = totals_in(metadata, self.name)
        except RefusedError as error:
            self.faults.append(str(error))

    def row(self, row: dict[str, Any]) -> None:
        """Check the next row of the part. A row has one image, or none if it failed."""
        if nulls := [name for name in NEVER_NULL if row[name] is None]:
            self._fault(row, f"has no {' and no '.join(nulls)}")
            return
        if row["image_index"] == 0:
            self._begin(row)
        elif row["image_index"] == self._last_index + 1 and self._outcomes:
            if row["status"] == "filtered":
                self._outcomes[-1] = "filtered"
        else:
            self._fault(row, f"has the image_index {row['image_index']} after {self._last_index}")
        self._last_index = row["image_index"]
        self._stored += row["image"] is not None
        position = len(self._outcomes) - 1
        if 0 <= position < len(self._ids) and row["row_id"] != self._ids[position]:
            self._fault(row, f"is where row {self._ids[position]!r} of the input belongs")
        self._check_outcome(row)

    def _begin(self, row: dict[str, Any]) -> None:
        """Count the first record of an input row."""
        self._outcomes.append(row["status"])
        if row["status"] == "failed" and row["error_code"]:
            self._error_codes[row["error_code"]] += 1
        if len(self._outcomes) > len(self._ids):
            self._fault(row, "is one row more than the shard has")

    def _check_outcome(self, row: dict[str, Any]) -> None:
        status, image = row["status"], row["image"]
        if status not in STATUSES:
            self._fault(row, f"has the status {status!r}")
        elif status == "ok" and image is None:
            self._fault(row, "is ok and has no image")
        elif image is None and (row.get("depth") or row.get("step_images")):
            self._fault(row, "has no image, but has a depth map or step images")
        elif status == "failed" and (image is not None or not row["error_code"]):
            self._fault(row, "failed, but has an image or no error_code")
        elif (status == "filtered") != (row["nsfw"] is True):
            self._fault(row, f"is {status}, and its nsfw is {row['nsfw']}")
        elif status == "filtered" and (image is None) != (self._flagged == "drop"):
            has = "no" if image is None else "an"
            self._fault(row, f"is filtered, and has {has} image although the spec says {self._flagged}")
        elif image is not None:
            self._check_image(row)
        elif status == "filtered":
            self._withheld += 1

    def _check_image(self, row: dict[str, Any]) -> None:
        image = self._opened(row, "an image", row["image"], "image_sha256")
        if image is None:
            return
        if image.size != (row["width"], row["height"]):
            self._fault(
                row, f"has an image of {image.width}x{image.height}, not {row['width']}x{row['height']}"
            )
            return
        self._images += 1
        route = self._router.resolve(row["task"], row["model"])
        self._check_depth(row, route)
        self._check_steps(row, route)

    def _check_depth(self, row: dict[str, Any], route: AnyRoute) -> None:
        depth = row.get("depth")
        last = route.steps[-1] if isinstance(route, ResolvedRoute) else route
        gives_depth = isinstance(last, ResolvedRoute) and last.system.gives_depth
        if (depth is not None) != gives_depth:
            has = "no" if depth is None else "a"
            self._fault(row, f"has {has} depth map; {last.name} gives {'one' if gives_depth else 'none'}")
        elif depth is not None:
            image = self._opened(row, "a depth map", depth, "depth_sha256")
            if image is not None and (image.mode, image.size) != (DEPTH_MODE, (row["width"], row["height"])):
                self._fault(
                    row,
                    f"has a depth map of {image.width}x{image.height} and mode {image.mode}, "
                    f"not {row['width']}x{row['height']} and {DEPTH_MODE}",
                )

    def _check_steps(self, row: dict[str, Any], route: AnyRoute) -> None:
        steps = row.get("step_images") or []
        num_expected = len(route.then) if isinstance(route, ResolvedRoute) and route.keep_steps else 0
        if len(steps) != num_expected:
            self._fault(row, f"has {len(steps)} step_images, not {num_expected}")
        for number, step in enumerate(steps, 1):
            self._opened(row, f"an image of step {number}", step)

    def _opened(
        self, row: dict[str, Any], what: str, stored: dict[str, Any] | None, checksum: str | None = None
    ) -> Image.Image | None:
        """A stored image, decoded; None, with a fault, where it is damaged or should not be stored.

        `what`: the image in words. `checksum`: the column with its checksum.
        """
        try:
            data = self._read(stored or {})
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > self._max_pixels:
                raise ValueError(f"{image.width}x{image.height} pixels are more than a row may ask for")
            image.load()
        except (OSError, SyntaxError, ValueError, DarkroomError) as error:
            self._fault(row, f"has {what} that cannot be opened: {error}")
            return None
        if checksum and hashlib.sha256(data).hexdigest() != row[checksum]:
            self._fault(row, f"has {what} with another checksum than {checksum}")
            return None
        if row["status"] == "filtered" and self._flagged == "black" and image.getbbox() is not None:
            self._fault(row, f"is filtered, and has {what} that is not black")
            return None
        return image

    def _read(self, stored: dict[str, Any]) -> bytes:
        if stored.get("bytes") is not None:
            return bytes(stored["bytes"])
        return self._read_image(stored.get("path") or "")

    def _fault(self, row: dict[str, Any], message: str) -> None:
        self.faults.append(f"{self.name}: row {shortened(repr(row['row_id']))} {message}")

    def end(self) -> None:
        """Compare the rows' counts with those in the footer, after the last row."""
        if self._totals is None:
            return
        recorded = asdict(self._totals)
        counts = {**{status: self._outcomes.count(status) for status in STATUSES}, "images": self._stored}
        for name, count in counts.items():
            if recorded[name] != count:
                self.faults.append(
                    f"{self.name}: its footer says {recorded[name]:,} {name}; its rows have {count:,}"
                )
        recorded_codes = dict(self._totals.error_codes)
        if recorded_codes != self._error_codes:
            self.faults.append(
                f"{self.name}: its footer says error codes {recorded_codes}; its rows have "
                f"{dict(self._error_codes)}"
            )

    def verdict(self) -> PartVerdict:
        """The result, after the last row."""
        if len(self._outcomes) != len(self._ids):
            self.faults.append(
                f"{self.name} has {counted(len(self._outcomes), 'row')}, not {len(self._ids):,}"
            )
        return PartVerdict(
            rows=Counter(self._outcomes), images=self._images, withheld=self._withheld, faults=self.faults
        )
