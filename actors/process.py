"""What this process takes of the machine."""

import resource
import sys


def peak_rss_bytes() -> int:
    """Its largest memory so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
