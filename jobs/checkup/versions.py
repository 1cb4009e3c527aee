"""Whether the installed libraries are those that darkroom needs."""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires, version

from jobs.checkup.finding import Finding, ok, problem, warning
from schemas import __version__
from schemas.wording.amounts import counted

SHOWN = ("ray", "torch", "diffusers", "transformers", "pyarrow")
"""The libraries whose versions are printed also where all is well."""
_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(?:\[[^]]*\])?>=(?P<least>[\w.]+)")


def check_versions(
    requirements: Sequence[str] | None = None, installed: Callable[[str], str] = version
) -> Iterator[Finding]:
    """Compare the installed libraries with what darkroom's package asks for.

    `requirements`: those of the package, such as `torch>=2.10`. `installed`: the version of a library.
    """
    python = ".".join(map(str, sys.version_info[:3]))
    yield ok(f"Python {python}, darkroom {__version__}")
    if requirements is None:
        try:
            requirements = [each for each in requires("darkroom") or [] if "extra ==" not in each]
        except PackageNotFoundError:
            yield warning("darkroom is not installed, so its libraries are not compared: pip install .")
            return
    needed = {match["name"]: match["least"] for each in requirements if (match := _REQUIREMENT.match(each))}
    faults = [fault for name, least in needed.items() if (fault := _fault(name, least, installed))]
    yield from map(problem, faults)
    if not faults:
        shown = ", ".join(f"{name} {installed(name)}" for name in SHOWN)
        yield ok(f"{shown} and {counted(len(needed) - len(SHOWN), 'other package')}")


def _fault(name: str, least: str, installed: Callable[[str], str]) -> str:
    try:
        present = installed(name)
    except PackageNotFoundError:
        return f"{name} is not installed: pip install '{name}>={least}'"
    if _numbers(present) < _numbers(least):
        return f"{name} is {present}, and darkroom needs {least}: pip install '{name}>={least}'"
    return ""


def _numbers(text: str) -> tuple[int, ...]:
    """The numbers of a version, without what follows them, such as `+cu130`."""
    return tuple(map(int, re.findall(r"\d+", text.partition("+")[0])))
