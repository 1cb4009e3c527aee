"""Amounts as people read them: counts, durations and sizes."""


def counted(number: float, noun: str) -> str:
    """The number with its noun in the singular or plural: `1 part`, `1,200 rows`, `0.5 GPUs`."""
    shown = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{shown} {noun}" if number == 1 else f"{shown} {noun}s"


def duration(seconds: float) -> str:
    """The duration in hours, minutes and seconds: `42 s`, `3 min 10 s`, `5 h 20 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def size_text(size_bytes: float) -> str:
    """The size in the largest unit that fits: `1 byte`, `812 bytes`, `3.4 MB`, `1.2 TB`."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if size_bytes < 1000 or unit == "TB":
            return counted(round(size_bytes), "byte") if unit == "bytes" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    raise AssertionError("the loop ends at TB")
