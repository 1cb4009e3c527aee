"""`_darkroom/driver.json`: which driver works on an output now, and its progress.

The lease only saves wasted work: two drivers cannot damage each other's results, because the first write of
each part counts. `darkroom status` reads the lease from any machine.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
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
"""A driver that has not renewed its lease for this long counts as dead."""
CLOCKS_DIFFER_S = 5.0
"""How far the clock of another machine is ahead at most, if it is set like this machine's."""
WATCH_S = 30.0
"""How long the lease of another machine is watched for a change, if its time cannot be right. A driver that
lives renews it three times."""
PATIENCE_S = 5.0
"""How long one renewal is tried. An unavailable store must not keep an interrupted driver from ending."""
MAX_LEASE_BYTES = 1 << 20
"""A thousand times what a lease needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRecord:
    """The content of `_darkroom/driver.json`; the progress is missing until the first renewal."""

    driver: str
    """A random name, which no other driver has."""
    host: str
    pid: Annotated[int, Field(gt=0, lt=2**31)]
    renewed_at: FiniteFloat
    """Unix seconds."""
    ended: bool
    """Whether the driver has given up the lease."""
    rows_done: StoredCount | None = None
    images_per_second: FiniteFloat = 0.0
    seconds_left: FiniteFloat | None = None
    workers: StoredCount = 0

    @property
    def age_s(self) -> float:
        """Seconds since its driver has renewed it."""
        return time.time() - self.renewed_at


_RECORD = TypeAdapter(LeaseRecord)


def read_lease(output: Output) -> LeaseRecord | None:
    """The output's lease; None where it does not exist or cannot be parsed, because it only saves work."""
    try:
        return parse_json(output.read(LEASE, MAX_LEASE_BYTES), _RECORD, output.uri(LEASE))
    except (FileNotFoundError, RefusedError):
        return None


class Lease:
    """This driver's lease, held for the `with` block.

    A thread renews it every RENEW_EVERY_S seconds, whatever the driver does. A slow store delays nothing.
    """

    def __init__(self, output: Output) -> None:
        """`output` is used to claim the lease. Renewals use an impatient storage of their own."""
        self._output = output
        impatient = open_storage(output.path, timeout_s=PATIENCE_S, deadline_s=PATIENCE_S)
        self._impatient_output = Output(impatient, output.path)
        self._driver = uuid.uuid4().hex
        self._state: dict[str, Any] = {}
        """The progress that the next renewal records."""
        self._ended = threading.Event()
        self._renewing = threading.Lock()
        self._renewer = threading.Thread(target=self._renew_regularly, name="lease", daemon=True)
        self._successor: LeaseRecord | None = None
        """The lease of the driver that has taken over, if one has."""

    def __enter__(self) -> "Lease":
        while not self._claim():
            pass
        self._renewer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._renewer.join()
        self._renew({"ended": True})

    def update(self, tally: Tally) -> None:
        """Set the progress that the next renewal records.

        RefusedError where the last renewal has shown that another driver has taken over.
        """
        self._refuse_succeeded()
        self._state = _state(tally)

    def confirm(self, tally: Tally) -> None:
        """Renew the lease now and wait for it; for use before a write that another driver would do too.

        RefusedError where another driver has taken over.
        """
        self._state = _state(tally)
        self._renew(self._state)
        self._refuse_succeeded()

    def _renew_regularly(self) -> None:
        while not self._ended.wait(RENEW_EVERY_S):
            self._renew(self._state)

    def _renew(self, state: dict[str, Any]) -> None:
        """Write the lease with this state, or record the successor if the lease is another driver's now."""
        try:
            with self._renewing:
                lease = read_lease(self._impatient_output)
                if lease and lease.driver != self._driver:
                    self._successor = lease
                else:
                    self._impatient_output.replace(LEASE, self._record(state))
        except DarkroomError as error:
            # If the store stays unavailable, the job ends when a part cannot be written.
            logger.warning("lease not renewed: %s", error)

    def _claim(self) -> bool:
        """Try to write this driver's lease; False if somebody else has written the lease in the meantime.

        RefusedError where another driver is alive.
        """
        storage, uri = self._output.storage, self._output.uri(LEASE)
        stored = storage.stat(uri)
        lease = read_lease(self._output)
        if lease and lease.driver == self._driver:
            return True  # The reply to an earlier write was lost.
        if lease and self._is_held(lease):
            raise RefusedError(self._refusal(lease))
        if stored is None:
            return storage.create(uri, self._record({}), {})
        return storage.exchange(uri, self._record({}), {}, etag=stored.etag)

    def _is_held(self, lease: LeaseRecord) -> bool:
        """Whether the driver that wrote this lease still runs.

        Of another machine's clock nothing is known: unless its time can be right, a change tells.
        """
        is_plausible = -CLOCKS_DIFFER_S <= lease.age_s <= VALID_S
        if lease.ended or is_plausible or lease.host == socket.gethostname():
            return is_alive(lease)
        logger.warning(
            "the lease of process %d on %s has a time %.0f s ago: watching it for up to %.0f s",
            *(lease.pid, lease.host, lease.age_s, WATCH_S),
        )
        end = time.monotonic() + WATCH_S
        while time.monotonic() < end:
            time.sleep(1)
            if read_lease(self._output) != lease:
                return True
        return False

    def _record(self, state: dict[str, Any]) -> bytes:
        """The bytes of `_darkroom/driver.json` for this driver now."""
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
            f"another driver is using {self._output.path}: process {lease.pid} on {lease.host}, which "
            f"renewed its lease {max(0, lease.age_s):.0f} s ago. Wait for it or stop it; if it is dead, try "
            f"again in {min(VALID_S, max(1, VALID_S - lease.age_s)):.0f} s"
        )

    def _refuse_succeeded(self) -> None:
        """Raise RefusedError if another driver has taken over."""
        if self._successor:
            raise RefusedError(
                f"another driver has taken over {self._output.path}: process {self._successor.pid} on "
                f"{self._successor.host}. This driver had not renewed its lease for {VALID_S:.0f} s, or both "
                "started at the same time. Saved parts stay; the other driver continues"
            )


def _state(tally: Tally) -> dict[str, Any]:
    """The progress of the job, as the lease records it."""
    return {
        "rows_done": round(tally.rows_done),
        "rows_total": tally.rows_total,
        "images_per_second": tally.images_per_second,
        "seconds_left": tally.seconds_left,
        "failed": tally.failed,
        "workers": tally.workers.num_workers,
    }


def is_alive(lease: LeaseRecord) -> bool:
    """Whether the driver that wrote this lease still runs, as far as this machine can tell."""
    if lease.ended or abs(lease.age_s) > VALID_S:
        return False
    if lease.host != socket.gethostname():
        return True
    # On the driver's own machine its process can be looked up: after a kill, a job resumes without waiting.
    try:
        os.kill(lease.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
