"""`_darkroom/driver.json`: who drives this output now and how far it is.

Two drivers cannot damage each other, since each part's create-only write decides; the lease only saves the
wasted work. It is also what `darkroom status` reads from elsewhere.
"""

import json
import logging
import os
import socket
import time
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Annotated, Any

from pydantic import Field, FiniteFloat, TypeAdapter

from actors.storage.output import Output
from actors.storage.stores import open_storage
from jobs.output.strict_json import parse_json
from jobs.output.tally import Tally
from schemas.errors import DarkroomError, RefusedError
from schemas.job import StoredCount
from schemas.output_layout import LEASE

logger = logging.getLogger(__name__)

RENEW_EVERY_S = 10.0
VALID_S = 60.0
"""A driver that has not renewed its lease for this long is dead."""
PATIENCE_S = 5.0
"""How long one renewal is tried: a store that is away must not keep an interrupted driver from ending."""
MAX_LEASE_BYTES = 1 << 20
"""A thousand times what it takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRecord:
    """What `_darkroom/driver.json` says; how far the job is, from the first progress on."""

    driver: str
    """A name that no other driver has."""
    host: str
    pid: Annotated[int, Field(gt=0, lt=2**31)]
    renewed_at: FiniteFloat
    """Unix seconds."""
    ended: bool
    rows_done: StoredCount | None = None
    images_per_second: FiniteFloat = 0.0
    seconds_left: FiniteFloat | None = None
    workers: StoredCount = 0

    @property
    def age_s(self) -> float:
        """Since its driver was heard of."""
        return time.time() - self.renewed_at


_RECORD = TypeAdapter(LeaseRecord)


def read_lease(output: Output) -> LeaseRecord | None:
    """The last driver's word; None where there is none that can be understood: it only saves work."""
    try:
        return parse_json(output.read(LEASE, MAX_LEASE_BYTES), _RECORD, output.uri(LEASE))
    except (FileNotFoundError, RefusedError):
        return None


class Lease:
    """Held while a driver runs; renewed from a thread so that a slow store never stops the dispatch."""

    def __init__(self, output: Output) -> None:
        """`output` is asked for the lease as patiently as for anything that a job begins with."""
        self._output = output
        hasty = open_storage(output.path, timeout_s=PATIENCE_S, deadline_s=PATIENCE_S)
        self._hasty_output = Output(hasty, output.path)
        self._driver = uuid.uuid4().hex
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="lease")
        self._writing: Future[None] | None = None
        self._renewed = float("-inf")
        self._successor: LeaseRecord | None = None
        """Who has taken the lease since."""

    def __enter__(self) -> "Lease":
        while not self._claimed():
            pass
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.shutdown(wait=True)
        self._renew({"ended": True})

    def renew(self, tally: Tally) -> None:
        """Say that this driver is alive and how far it is; does nothing until it is time again.

        RefusedError where another driver was found to have taken over.
        """
        self._refuse_succeeded()
        if time.monotonic() - self._renewed < RENEW_EVERY_S or (self._writing and not self._writing.done()):
            return
        self._renewed = time.monotonic()
        self._writing = self._writer.submit(self._renew, _state(tally))

    def confirm(self, tally: Tally) -> None:
        """Renew it now, before something is written that another driver would write too."""
        self._writer.submit(self._renew, _state(tally)).result()
        self._refuse_succeeded()

    def _renew(self, state: dict[str, Any]) -> None:
        try:
            lease = read_lease(self._hasty_output)
            if lease and lease.driver != self._driver:
                self._successor = lease
            else:
                self._hasty_output.replace(LEASE, self._record(state))
        except DarkroomError as error:
            # A store that stays away ends the job where a part cannot be written.
            logger.warning("lease not renewed: %s", error)

    def _claimed(self) -> bool:
        """Whether the lease is this driver's; False where another one has written it in between."""
        storage, uri = self._output.storage, self._output.uri(LEASE)
        stored = storage.stat(uri)
        lease = read_lease(self._output)
        if lease and lease.driver == self._driver:
            return True  # the reply to its write was lost
        if lease and is_alive(lease):
            raise RefusedError(self._refusal(lease))
        if stored is None:
            return storage.create(uri, self._record({}), {})
        return storage.exchange(uri, self._record({}), {}, etag=stored.etag)

    def _record(self, state: dict[str, Any]) -> bytes:
        record = {
            "driver": self._driver,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "renewed_at": time.time(),
            "ended": False,
            **state,
        }
        return json.dumps(record, indent=2).encode()

    def _refusal(self, lease: LeaseRecord) -> str:
        return (
            f"another driver is at work on {self._output.path}: process {lease.pid} on {lease.host}, "
            f"heard of {lease.age_s:.0f} s ago. Wait for it or stop it; if it is dead, try again in "
            f"{max(1, VALID_S - lease.age_s):.0f} s"
        )

    def _refuse_succeeded(self) -> None:
        if self._successor:
            raise RefusedError(
                f"another driver has taken {self._output.path} over: process {self._successor.pid} on "
                f"{self._successor.host}. This one had not been heard of for {VALID_S:.0f} s, or "
                "both began at once. What is committed stays; the other one goes on"
            )


def _state(tally: Tally) -> dict[str, Any]:
    """How far the job is."""
    return {
        "rows_done": round(tally.rows_done),
        "rows_total": tally.rows_total,
        "images_per_second": round(tally.images_per_second, 2),
        "seconds_left": tally.seconds_left,
        "failed": tally.failed,
        "workers": tally.num_workers,
    }


def is_alive(lease: LeaseRecord) -> bool:
    """Whether the driver that wrote this still runs, as far as can be told from here."""
    if lease.ended or lease.age_s > VALID_S:
        return False
    if lease.host != socket.gethostname():
        return True
    # On its own machine a killed driver is found out at once: no waiting to resume.
    try:
        os.kill(lease.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
