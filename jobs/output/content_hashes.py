"""The hashes of the input's files. The etag of a local file sees its ends only, and prompts lie between."""

from collections.abc import Iterable
from dataclasses import replace

from actors.storage.objects import Storage
from actors.storage.stores import Stores
from actors.storage.uris import HUB_SCHEME
from jobs.in_flight import map_in_flight
from jobs.planning.plan import Plan
from schemas.job import PlannedFile

HASHES_AT_ONCE = 4
"""Input files that are hashed at the same time."""


def with_hashes(plan: Plan) -> Plan:
    """The plan with the hash of each whole input file, if the spec asks for it."""
    spec = plan.job.spec
    if spec.input.hash == "ends":
        return plan
    stores = Stores(spec.errors.storage_deadline_s)

    def hashed(file: PlannedFile) -> PlannedFile:
        if file.uri.startswith(HUB_SCHEME):  # The etag is the hash.
            return file
        return replace(file, sha256=stores.of(file.uri).content_hash(file.uri))

    return replace(plan, files=tuple(map_in_flight(hashed, plan.files, at_once=HASHES_AT_ONCE)))


def changed_files(files: Iterable[PlannedFile], stores: Stores) -> list[str]:
    """The URIs of the files whose content is not the recorded one."""

    def change_of(file: PlannedFile) -> str:
        return "" if has_hash(stores.of(file.uri), file) else file.uri

    return [*filter(None, map_in_flight(change_of, files, at_once=HASHES_AT_ONCE))]


def has_hash(storage: Storage, file: PlannedFile) -> bool:
    """Whether the file's whole content is the recorded one. Without a recorded hash it counts as that."""
    return not file.sha256 or storage.content_hash(file.uri) == file.sha256
