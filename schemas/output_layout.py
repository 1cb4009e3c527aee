"""Every name in an output, written once: its folders, its files, and the keys of a part's footer.

data/train-00012-of-00400.parquet           one part: the rows of one shard
images/train-00012-of-00400/HASH-NAME.png   one image, where output.images is `files`
_darkroom/job.json                          whose output this is
_darkroom/driver.json                       who drives it, and how far the job is
_darkroom/summary.json, manifest.jsonl      written when the job is done
README.md, contact-sheet.html, _SUCCESS     written when the job is done, _SUCCESS last
"""

import re

PARTS_FOLDER = "data"
IMAGES_FOLDER = "images"
OWN_FOLDER = "_darkroom"
"""Records and reports. Programs that read Parquet pass over a folder whose name begins with _."""
TEMPORARY_FOLDER = "tmp"
"""Below OWN_FOLDER, on a local disk: files that are not yet in their places."""

JOB_RECORD = f"{OWN_FOLDER}/job.json"
LEASE = f"{OWN_FOLDER}/driver.json"
SUMMARY = f"{OWN_FOLDER}/summary.json"
MANIFEST = f"{OWN_FOLDER}/manifest.jsonl"
DATASET_CARD = "README.md"
CONTACT_SHEET = "contact-sheet.html"
SUCCESS = "_SUCCESS"

JOB_KEY = b"darkroom.job"
SHARD_KEY = b"darkroom.shard"
"""Keys of a part's footer that say whose part it is, where the store keeps no metadata."""
COUNTS_KEY = b"darkroom.counts"
ERROR_CODES_KEY = b"darkroom.error_codes"
MODELS_KEY = b"darkroom.models"
VERSIONS_KEY = b"darkroom.versions"

_PART_FILE = re.compile(r"^train-(\d{5,})-of-(\d{5,})\.parquet$")


def shard_name(index: int, num_shards: int) -> str:
    """The name of a shard, and of its part without the ending; names sort as the shards do."""
    return f"train-{index:05d}-of-{num_shards:05d}"


def part_file(shard: str) -> str:
    """The path of a shard's part below the output."""
    return f"{PARTS_FOLDER}/{shard}.parquet"


def parse_part_file(name: str) -> tuple[int, int] | None:
    """(index, number of shards) of a part, from its file's name; None where it is not a part's name."""
    match = _PART_FILE.match(name)
    return match and (int(match[1]), int(match[2]))


def image_file(shard: str, content_hash: str, name: str) -> str:
    """The path of an image's own object below the output.

    It holds the content's hash: whichever attempt wrote the object, a part that names it is right.
    """
    return f"{IMAGES_FOLDER}/{shard}/{content_hash}-{name}"
