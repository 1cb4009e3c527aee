"""Every name in an output: its folders, its files, and the keys of a part's footer.

data/train-00012-of-00400.parquet           one part: the rows of one shard
images/train-00012-of-00400/ROW-ID-HASH.png one image, if output.images is `files`
_darkroom/job.json                          the job to which the output belongs
_darkroom/driver.json                       the lease: which driver runs the job, and how far it is
_darkroom/summary.json, manifest.jsonl      written when the job is done
README.md, contact-sheet.html, _SUCCESS     written when the job is done, _SUCCESS last
"""

import re

PARTS_FOLDER = "data"
PARTS_PATTERN = f"{PARTS_FOLDER}/train-*"
"""What readers of data sets look for."""
IMAGES_FOLDER = "images"
OWN_FOLDER = "_darkroom"
"""The folder of records and reports. Programs that read Parquet skip a folder whose name begins with _."""
TEMPORARY_FOLDER = "tmp"
"""A folder below OWN_FOLDER, on a local disk only, for files that are still being written."""

JOB_RECORD = f"{OWN_FOLDER}/job.json"
LEASE = f"{OWN_FOLDER}/driver.json"
SUMMARY = f"{OWN_FOLDER}/summary.json"
MANIFEST = f"{OWN_FOLDER}/manifest.jsonl"
DATASET_CARD = "README.md"
CONTACT_SHEET = "contact-sheet.html"
SUCCESS = "_SUCCESS"

JOB_KEY = b"darkroom.job"
SHARD_KEY = b"darkroom.shard"
"""The footer keys of a part's job and shard, for stores that keep no metadata."""
COUNTS_KEY = b"darkroom.counts"
ERROR_CODES_KEY = b"darkroom.error_codes"
MODELS_KEY = b"darkroom.models"
VERSIONS_KEY = b"darkroom.versions"

_ID_CHARACTERS = 64
"""Characters of a row's id in the name of its image's object."""
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_PART_FILE = re.compile(r"^train-(\d{5,})-of-(\d{5,})\.parquet$")


def shard_name(index: int, num_shards: int) -> str:
    """The name of a shard, and of its part without the ending; names sort as the shards do."""
    num_digits = max(5, len(str(num_shards - 1)))
    return f"train-{index:0{num_digits}d}-of-{num_shards:05d}"


def part_file(shard: str) -> str:
    """The path of a shard's part, relative to the output."""
    return f"{PARTS_FOLDER}/{shard}.parquet"


def parse_part_file(name: str) -> tuple[int, int] | None:
    """(index, number of shards) from the name of a part's file; None if it is not the name of a part."""
    match = _PART_FILE.match(name)
    return match and (int(match[1]), int(match[2]))


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
