"""Facts that a process of its own finds out: heavy libraries stay out of this one, and it can be killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from typing import Any

from models.demo_cache import builder_folder

PATIENCE_S = 90.0
"""How long such a process may take. To import torch or start Ray takes twenty seconds on a busy machine."""


class NoFactsError(Exception):
    """The process ended without facts; the text is its last line, or how long it took."""


def facts_of(module: str, patience_s: float = PATIENCE_S, **env: str) -> dict[str, Any]:
    """What `python -m MODULE` prints as JSON. What it leaves in its folder for temporary files is removed."""
    # Sockets of Ray below it have names of 107 characters at most.
    folder = tempfile.mkdtemp(prefix="dr-", dir="/tmp" if os.access("/tmp", os.W_OK) else None)
    root = str(builder_folder().parent)
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    if os.environ.get("RAY_ADDRESS", "") in ("", "local"):  # Else Ray looks there for a running cluster.
        env["RAY_TMPDIR"] = folder
    process = subprocess.Popen(
        [sys.executable, "-m", module],
        env={**os.environ, "PYTHONPATH": paths, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            out, err = process.communicate(timeout=patience_s)
        except subprocess.TimeoutExpired as error:
            raise NoFactsError(f"no answer within {patience_s:g} s") from error
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # The processes of Ray end with it.
                process.wait()
            shutil.rmtree(folder, ignore_errors=True)
    if process.returncode:
        raise NoFactsError((err.strip().splitlines() or [f"exit code {process.returncode}"])[-1])
    facts = json.loads(out.splitlines()[-1])
    assert isinstance(facts, dict), "as the modules print it"
    return facts
