"""What goes wrong when darkroom reaches for Ray, as a SpecError of one line with the way out."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from ray.exceptions import AuthenticationError

from schemas.errors import SpecError

CONNECT_WITHIN_S = 10.0
"""How long the head of a cluster may take to accept a connection."""
SPEAKS_WITHIN_S = 1.0
"""How long a web server may take to answer; the head's own port does not speak HTTP/1."""

_TOKEN = (
    "Set RAY_AUTH_MODE=token here, and save the cluster's token in ~/.ray/auth_token or set RAY_AUTH_TOKEN"
)


@contextmanager
def ray_faults(action: str) -> Iterator[None]:
    """Raise SpecError for an error of Ray within the block; `action`: what cannot be done, `start Ray`."""
    try:
        yield
    except AuthenticationError as error:
        reason = _one_line(error).partition(". Ensure that")[0]
        raise SpecError(f"cannot {action}: {reason}. {_TOKEN}") from error
    except ConnectionError as error:
        raise SpecError(f"cannot {action}: {_one_line(error)}. If it asks for a token: {_TOKEN}") from error
    except (OSError, RuntimeError, ValueError) as error:
        if way_out := _way_out(str(error)):
            raise SpecError(f"cannot {action}: {_one_line(error)}. {way_out}") from error
        raise


def _way_out(message: str) -> str:
    """What to do about an error of Ray 2.60 with this message; empty for one that is not known."""
    if "AF_UNIX path length" in message:
        return "Ray's folder for temporary files has too long a name: set RAY_TMPDIR to a short one, as /tmp"
    if "Version mismatch" in message:
        return "Install the cluster's versions of Ray and Python here, or these versions on the cluster"
    return ""


def _one_line(error: Exception) -> str:
    """The message without line breaks, and without the full stop at its end."""
    return " ".join(str(error).split()).rstrip(".")


def check_answers(address: str) -> None:
    """Raise SpecError if no head of a cluster answers there; Ray 2.60 would try for a quarter of an hour."""
    if address.startswith("http"):
        raise SpecError(
            f"RAY_ADDRESS is {address}, the address for `darkroom submit --address`; "
            "to connect to a cluster, set it to its head as host:6379, or unset it to start Ray here"
        )
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # "auto", "local", or no address
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_WITHIN_S) as connection:
            if _is_web_server(connection):
                raise SpecError(
                    f"RAY_ADDRESS is {address}, where a web server answers, such as Ray's dashboard; set it "
                    "to the cluster's head as host:6379"
                )
    except OSError as error:
        raise SpecError(
            f"RAY_ADDRESS is {address}, but nothing answers there: {error}. "
            "Unset it to start Ray on this machine"
        ) from error


def _is_web_server(connection: socket.socket) -> bool:
    connection.settimeout(SPEAKS_WITHIN_S)
    try:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: ray\r\nConnection: close\r\n\r\n")
        return connection.recv(5) == b"HTTP/"
    except OSError:
        return False
