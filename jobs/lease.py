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
from types import TracebackType
from typing import Any

from actors.storage import Storage, join, open_storage
from jobs.progress import Tally
from schemas.errors import DarkroomError, RefusedError

logger = logging.getLogger(__name__)

LEASE = "_darkroom/driver.json"
RENEW_EVERY_S = 10.0
VALID_S = 60.0
"""A driver that has not renewed its lease for this long is dead."""
PATIENCE_S = 5.0
"""How long one renewal is tried: a store that is away must not keep an interrupted driver from ending."""


def read_lease(storage: Storage, output: str) -> dict[str, Any] | None:
    """The last driver's word, or None."""
    try:
        return dict(json.loads(storage.read(join(output, LEASE))))
    except (FileNotFoundError, ValueError):
        return None


class Lease:
    """Held while a driver runs; renewed from a thread so that a slow store never stops the dispatch."""

    def __init__(self, output: str) -> None:
        self._storage = open_storage(output, timeout_s=PATIENCE_S, deadline_s=PATIENCE_S)
        self._output = output
        self._driver = uuid.uuid4().hex
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="lease")
        self._writing: Future[None] | None = None
        self._renewed = float("-inf")

    def __enter__(self) -> "Lease":
        self._refuse_living()
        self._write({})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.shutdown(wait=True)
        self._renew({"ended": True})

    def renew(self, tally: Tally) -> None:
        """Say that this driver is alive and how far it is; does nothing until it is time again."""
        if time.monotonic() - self._renewed < RENEW_EVERY_S or (self._writing and not self._writing.done()):
            return
        self._renewed = time.monotonic()
        state = {
            "rows_done": round(tally.rows_done),
            "rows_total": tally.rows_total,
            "images_per_second": round(tally.images_per_second, 2),
            "seconds_left": tally.seconds_left,
            "failed": tally.failed,
            "workers": tally.num_workers,
        }
        self._writing = self._writer.submit(self._renew, state)

    def _renew(self, state: dict[str, Any]) -> None:
        try:
            self._write(state)
        except DarkroomError as error:
            # A store that stays away ends the job where a part cannot be written.
            logger.warning("lease not renewed: %s", error)

    def _write(self, state: dict[str, Any]) -> None:
        record = {
            "driver": self._driver,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "renewed_at": time.time(),
            "ended": False,
            **state,
        }
        self._storage.replace(join(self._output, LEASE), json.dumps(record, indent=2).encode())

    def _refuse_living(self) -> None:
        lease = read_lease(self._storage, self._output)
        if lease is None or not is_alive(lease):
            return
        age = time.time() - lease["renewed_at"]
        raise RefusedError(
            f"another driver is at work on {self._output}: process {lease['pid']} on {lease['host']}, "
            f"heard of {age:.0f} s ago. Wait for it or stop it; if it is dead, try again in "
            f"{max(1, VALID_S - age):.0f} s"
        )


def is_alive(lease: dict[str, Any]) -> bool:
    """Whether the driver that wrote this still runs, as far as can be told from here."""
    if lease["ended"] or time.time() - lease["renewed_at"] > VALID_S:
        return False
    if lease["host"] != socket.gethostname():
        return True
    # On its own machine a killed driver is found out at once: no waiting to resume.
    try:
        os.kill(lease["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
