"""Whether one part holds exactly the outcomes of its shard's rows."""

import hashlib
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image

from actors.images.input_images import FORMATS
from actors.rows.routing import AnyRoute, ResolvedRoute, Router
from jobs.output.parts import Totals, totals_in
from schemas.columns.output_columns import NEVER_NULL, STATUSES
from schemas.errors import DarkroomError, RefusedError
from schemas.output_layout import JOB_KEY, SHARD_KEY
from schemas.spec.job_spec import JobSpec
from schemas.wording.printable import shortened

DEPTH_MODE = "I;16"
MAX_GROWTH = 16
"""Pixels that come out for one that goes in, at most: of an upscaler four times as wide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartVerdict:
    """What one part was found to be."""

    rows: Counter[str]
    """Input rows by outcome."""
    images: int
    """Pictures that decode and have the recorded checksum and size."""
    withheld: int
    """Pictures that a safety checker flagged and that the spec has dropped."""
    faults: list[str]


class PartCheck:
    """What is known of a part while its rows go by."""

    def __init__(
        self, name: str, ids: list[Any], spec: JobSpec, router: Router, read_image: Callable[[str], bytes]
    ) -> None:
        """`read_image`: reads what a part names instead of holding it."""
        self.name = name
        self._ids = ids
        self._flagged = spec.safety.flagged
        self._max_pixels = spec.input.max_pixels * MAX_GROWTH
        self._router = router
        self._read_image = read_image
        self._outcomes: list[str] = []
        self._last_index = -1
        self._stored = 0
        """Rows with a picture."""
        self._images = 0
        self._withheld = 0
        self._error_codes: Counter[str] = Counter()
        self._totals: Totals | None = None
        """What the footer says of the rows."""
        self.faults: list[str] = []

    def footer(self, metadata: dict[bytes, bytes], fingerprint: str) -> None:
        """Whose part it says it is, and what of its rows."""
        job, shard = (metadata.get(key, b"").decode(errors="replace") for key in (JOB_KEY, SHARD_KEY))
        if (job, shard) != (fingerprint, self.name):
            self.faults.append(f"{self.name} says it is shard {shard!r} of job {job!r}")
        try:
            self._totals = totals_in(metadata, self.name)
        except RefusedError as error:
            self.faults.append(str(error))

    def row(self, row: dict[str, Any]) -> None:
        """The next row of the part: one picture, or one failure."""
        if nulls := [name for name in NEVER_NULL if row[name] is None]:
            self._fault(row, f"has no {' and no '.join(nulls)}")
            return
        if row["image_index"] == 0:
            self._begin(row)
        elif row["image_index"] == self._last_index + 1 and self._outcomes:
            if row["status"] == "filtered":
                self._outcomes[-1] = "filtered"
        else:
            self._fault(row, f"image_index is {row['image_index']} after {self._last_index}")
        self._last_index = row["image_index"]
        self._stored += row["image"] is not None
        place = len(self._outcomes) - 1
        if 0 <= place < len(self._ids) and row["row_id"] != self._ids[place]:
            self._fault(row, f"stands where row {self._ids[place]!r} of the input belongs")
        self._check_outcome(row)

    def _begin(self, row: dict[str, Any]) -> None:
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
            self._fault(row, "has no image, but a depth map or steps")
        elif status == "failed" and (image is not None or not row["error_code"]):
            self._fault(row, "failed, and has an image or no error_code")
        elif (status == "filtered") != (row["nsfw"] is True):
            self._fault(row, f"is {status}, and its nsfw is {row['nsfw']}")
        elif status == "filtered" and (image is None) != (self._flagged == "drop"):
            has = "no" if image is None else "an"
            self._fault(row, f"is filtered, and has {has} image though the spec says {self._flagged}")
        elif image is not None:
            self._check_image(row)
        elif status == "filtered":
            self._withheld += 1

    def _check_image(self, row: dict[str, Any]) -> None:
        picture = self._opened(row, "a picture", row["image"], "image_sha256")
        if picture is None:
            return
        if picture.size != (row["width"], row["height"]):
            self._fault(row, f"has a picture of {picture.size}, not {row['width']}x{row['height']}")
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
            found = self._opened(row, "a depth map", depth, "depth_sha256")
            if found is not None and (found.mode, found.size) != (DEPTH_MODE, (row["width"], row["height"])):
                self._fault(
                    row,
                    f"has a depth map of {found.size} and mode {found.mode}, "
                    f"not {row['width']}x{row['height']} and {DEPTH_MODE}",
                )

    def _check_steps(self, row: dict[str, Any], route: AnyRoute) -> None:
        steps = row.get("step_images") or []
        wanted = len(route.then) if isinstance(route, ResolvedRoute) and route.keep_steps else 0
        if len(steps) != wanted:
            self._fault(row, f"has {len(steps)} step_images, not {wanted}")
        for place, step in enumerate(steps, 1):
            self._opened(row, f"a picture of step {place}", step)

    def _opened(
        self, row: dict[str, Any], what: str, stored: dict[str, Any] | None, checksum: str | None = None
    ) -> Image.Image | None:
        """A stored picture, decoded; None, and a fault, where it is not what the column `checksum` says."""
        try:
            data = self._read(stored or {})
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
            if picture.width * picture.height > self._max_pixels:
                raise ValueError(f"{picture.width}x{picture.height} pixels are more than a row may ask for")
            picture.load()
        except (OSError, SyntaxError, ValueError, DarkroomError) as error:
            self._fault(row, f"has {what} that does not open: {error}")
            return None
        if checksum and hashlib.sha256(data).hexdigest() != row[checksum]:
            self._fault(row, f"has {what} with another checksum")
            return None
        if row["status"] == "filtered" and self._flagged == "black" and picture.getbbox() is not None:
            self._fault(row, f"is filtered, and has {what} that is not black")
            return None
        return picture

    def _read(self, stored: dict[str, Any]) -> bytes:
        if stored.get("bytes") is not None:
            return bytes(stored["bytes"])
        return self._read_image(stored.get("path") or "")

    def _fault(self, row: dict[str, Any], message: str) -> None:
        self.faults.append(f"{self.name}: row {shortened(repr(row['row_id']))} {message}")

    def end(self) -> None:
        """All rows have gone by: whether they are those of which the footer speaks."""
        if self._totals is None:
            return
        said = asdict(self._totals)
        found = {**{status: self._outcomes.count(status) for status in STATUSES}, "images": self._stored}
        for name, number in found.items():
            if said[name] != number:
                self.faults.append(
                    f"{self.name}: its footer says {said[name]:,} {name}; there are {number:,}"
                )
        codes = dict(self._totals.error_codes)
        if codes != self._error_codes:
            there = dict(self._error_codes)
            self.faults.append(f"{self.name}: its footer says of error codes {codes}; there are {there}")

    def verdict(self) -> PartVerdict:
        """When all rows have gone by."""
        if len(self._outcomes) != len(self._ids):
            self.faults.append(f"{self.name} has {len(self._outcomes)} rows of {len(self._ids)}")
        return PartVerdict(
            rows=Counter(self._outcomes), images=self._images, withheld=self._withheld, faults=self.faults
        )
