"""Units of time in trace files, and what a number that cannot be a time in its unit looks like."""

from __future__ import annotations

SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
"""Units of an arrival on the clock of the file."""

UNIX_SECONDS = {f"unix_{name}": seconds for name, seconds in SECONDS.items()}
"""Units of an arrival since 1970, UTC."""

UNITS = (*SECONDS, "date", *UNIX_SECONDS)

# 2000 to 2050
_UNIX_FROM_S, _UNIX_TO_S = 9.4e8, 2.53e9


def likely_unit(value: float, unit: str) -> str:
    """Return in which of `UNITS` a time would be plausible; "" if in none.

    Parameters
    ----------
    value : float
        As it stands in the file.
    unit : str
        The one it was read with.
    """
    for name, seconds in UNIX_SECONDS.items():
        if _UNIX_FROM_S <= value * seconds <= _UNIX_TO_S and unit != name:
            return name
    names = list(SECONDS)
    finer = names[names.index(unit) + 1 :] if unit in names else []
    return next((name for name in finer if value * SECONDS[name] <= 366 * 86400), "")


def unit_hint(value: float, unit: str) -> str:
    """Return in words what a time looks like, for a reader that cannot be told the unit; "" if like nothing known."""
    likely = likely_unit(value, unit)
    if not likely:
        return ""
    return f"it looks like {'Unix time in ' if likely in UNIX_SECONDS else ''}{likely.removeprefix('unix_')}"
