"""What a number that cannot be a time in the unit it was read with looks like."""

from __future__ import annotations

_CLOCKS = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9))
# 2000 to 2050
_UNIX_FROM_S, _UNIX_TO_S = 9.4e8, 2.53e9


def unit_hint(value: float, unit: str) -> str:
    """Return in which unit a time would be plausible; "" if in none.

    Parameters
    ----------
    value : float
        As it stands in the file.
    unit : str
        The one it was read with.
    """
    for name, seconds in _CLOCKS:
        if _UNIX_FROM_S <= value * seconds <= _UNIX_TO_S and unit != f"unix_{name}":
            return f'it looks like Unix time in {name}: name it with columns={{"arrival_s": ...}}, unit="unix_{name}"'
    names = [name for name, _ in _CLOCKS]
    finer = names[names.index(unit) + 1 :] if unit in names else []
    for name, seconds in _CLOCKS:
        if name in finer and value * seconds <= 366 * 86400:
            return f'it looks like {name}: name it with columns={{"arrival_s": ...}}, unit="{name}"'
    return ""
