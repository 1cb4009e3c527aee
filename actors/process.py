"""What this process uses of the machine."""

import resource
import sys


def peak_rss_bytes() -> int:
    """The most memory that this process has had so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def bytes_moved() -> int:
    """The bytes of files that this process has read and written so far; 0 on systems without /proc."""
    try:
        with open("/proc/self/io", encoding="ascii") as file:
            counts = dict(line.split(": ") for line in file)
    except OSError:
        return 0
    # `rchar` lacks what is read through a memory map, and `read_bytes` what is in the page cache.
    return sum(int(counts[name]) for name in ("rchar", "wchar", "read_bytes"))
