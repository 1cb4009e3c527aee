"""Every name in an output: its folders, its files, and the keys of a part's footer.

data/train-00012-of-00400.parquet           one part: the rows of one shard
data/train-x0001-00003-of-00020.parquet     one part of the first extension of the job
images/train-00012-of-00400/ROW-ID-HASH.png one image, if output.images is `files`
_darkroom/job.json                          the job to which the output belongs
_darkroom/job-x0001.json                    the first extension of that job: further input files
_darkroom/input/rows.csv-HASH.parquet       the rows of an input file that is not Parquet, or is on the Hub
_darkroom/driver.json                       the lease: which driver runs the job, and how far it is
_darkroom/estimate.json                     how long the job was expected to take when it began
_darkroom/summary.json, manifest.jsonl      written when the job is done
README.md, contact-sheet.html, _SUCCESS     written when the job is done, _SUCCESS last

Beside an output are those of its job's trials, OUTPUT.trials/0001 and so on, each with all of the above.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

PARTS_FOLDER = "data"
PARTS_PATTERN = f"{PARTS_FOLDER}/train-*"
"""What readers of data sets look for."""
IMAGES_FOLDER = "images"
OWN_FOLDER = "_darkroom"
"""The folder of records and reports. Programs that read Parquet skip a folder whose name begins with _."""
TEMPORARY_FOLDER = "tmp"
"""A folder below OWN_FOLDER, on a local disk only, for files that are still being written."""

JOB_RECORD = f"{OWN_FOLDER}/job.json"
INPUT_FOLDER = f"{OWN_FOLDER}/input"
MAX_EXTENSIONS = 9_999
"""The names of more would not sort in the order of the extensions."""
LEASE = f"{OWN_FOLDER}/driver.json"
ESTIMATE = f"{OWN_FOLDER}/estimate.json"
SUMMARY = f"{OWN_FOLDER}/summary.json"
MANIFEST = f"{OWN_FOLDER}/manifest.jsonl"
DATASET_CARD = "README.md"
CONTACT_SHEET = "contact-sheet.html"
SUCCESS = "_SUCCESS"

TRIALS = ".trials"
"""What the folder of an output's trials has behind the output's own name."""

JOB_KEY = b"darkroom.job"
SHARD_KEY = b"darkroom.shard"
"""The footer keys of a part's job and shard, for stores that keep no metadata."""
COUNTS_KEY = b"darkroom.counts"
ERROR_CODES_KEY = b"darkroom.error_codes"
MODELS_KEY = b"darkroom.models"
VERSIONS_KEY = b"darkroom.versions"

_ID_CHARACTERS = 64
"""Characters of a row's id in the name of its image's object."""
_HASH_DIGITS = 32
"""Hexadecimal digits of a copy's hash in its name."""
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_PART_FILE = re.compile(r"^train-(?:x(\d{4,})-)?(\d{5,})-of-(\d{5,})\.parquet$")
_EXTENSION_RECORD = re.compile(rf"^{OWN_FOLDER}/job-x(\d{{4,}})\.json$")


def record_file(extension: int) -> str:
    """The path, relative to the output, of the record of an extension; of the job itself for 0."""
    return f"{OWN_FOLDER}/job-x{extension:04d}.json" if extension else JOB_RECORD


def parse_record_file(path: str) -> int | None:
    """The number of the extension whose record has this path; None if it is no such path."""
    match = _EXTENSION_RECORD.match(path)
    return match and int(match[1])


def trial_folder(output: str, number: int) -> str:
    """The path of the output of a trial of a job, beside the job's own output. Trials count from 1."""
    return f"{output}{TRIALS}/{number:04d}"


def input_copy(name: str, content_hash: str) -> str:
    """The path, relative to the output, of the Parquet copy of an input file that has this name.

    It contains the hash of the copy's content, so a copy of this path is right whichever driver wrote it.
    """
    return f"{INPUT_FOLDER}/{_readable(name)}-{content_hash[:_HASH_DIGITS]}.parquet"


class PartFileName(NamedTuple):
    """What the name of a part's file says."""

    extension: int
    """The extension of the job to which it belongs; 0: none, it is of the job as it began."""
    number: int
    """The number of its shard in this extension, from 0."""
    of: int
    """The number of shards of this extension."""


def shard_name(number: int, of: int, extension: int = 0) -> str:
    """The name of a shard, and of its part without the ending; names sort as the shards do."""
    num_digits = max(5, len(str(of - 1)))
    prefix = f"x{extension:04d}-" if extension else ""
    return f"train-{prefix}{number:0{num_digits}d}-of-{of:05d}"


class ShardNames:
    """The names of all shards of a job: those with which it began, and then those of each extension."""

    def __init__(self, nums_of_shards: Sequence[int]) -> None:
        """`nums_of_shards`: the number of shards with which the job began, and of those of each extension."""
        self._nums_of_shards = nums_of_shards
        self._firsts = [*accumulate(nums_of_shards, initial=0)]
        """The index of the first shard of each, and the number of all shards."""

    @property
    def num_shards(self) -> int:
        """The number of shards of the whole job."""
        return self._firsts[-1]

    def name(self, index: int) -> str:
        """The name of the shard with this index, which must be less than the number of shards."""
        extension = bisect_right(self._firsts, index) - 1
        return shard_name(index - self._firsts[extension], self._nums_of_shards[extension], extension)

    def index_of(self, name: PartFileName) -> int | None:
        """The index of the shard whose part has this name; None if the job has no such shard."""
        if name.extension >= len(self._nums_of_shards) or name.of != self._nums_of_shards[name.extension]:
            return None
        return self._firsts[name.extension] + name.number if name.number < name.of else None


def part_file(shard: str) -> str:
    """The path of a shard's part, relative to the output."""
    return f"{PARTS_FOLDER}/{shard}.parquet"


def parse_part_file(name: str) -> PartFileName | None:
    """What the name of a part's file says; None if it is not the name of a part."""
    match = _PART_FILE.match(name)
    return match and PartFileName(int(match[1] or 0), int(match[2]), int(match[3]))


def image_file(shard: str, name: str, row_id: str | int, content_hash: str, ending: str) -> str:
    """The path of an image that is an object of its own, relative to the output.

    `name` tells it from all others of the shard; the id is there for people, as far as it is safe in any
    file system. The path contains the hash of the content, so a part that names it is right whichever
    attempt wrote the object.
    """
    readable = _readable(str(row_id))
    return f"{IMAGES_FOLDER}/{shard}/{name}{readable and f'-{readable}'}-{content_hash}.{ending}"


def _readable(row_id: str) -> str:
    """The id in ASCII letters, digits, `.`, `_` and `-`; of a long one its two ends."""
    readable = _UNSAFE.sub("_", row_id).strip("._-")
    half = _ID_CHARACTERS // 2
    return readable if len(readable) <= _ID_CHARACTERS else f"{readable[:half]}_{readable[1 - half :]}"


def output_of_image(part: str, path: str) -> str | None:
    """The output whose image this path is, if one of its parts names it; else None."""
    folder, _, name = part.rpartition(f"/{PARTS_FOLDER}/")
    return folder if parse_part_file(name) and path.startswith(f"{IMAGES_FOLDER}/") else None
