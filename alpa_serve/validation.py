"""Checks of single values, with messages that name what was checked."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import TYPE_CHECKING, TypeVar

from alpa_serve.errors import AlpaServeError, InvalidConfigError, UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Iterable


def check_real(
    value: object,
    what: str,
    *,
    minimum: float = -math.inf,
    exclusive: bool = False,
    finite: bool = True,
    error: type[AlpaServeError] = InvalidConfigError,
) -> float:
    """Return `value` as a float after checking that it is a real number in range.

    Parameters
    ----------
    value : object
        What the caller was given.
    what : str
        Its name and owner for the message, e.g. ``"rate of model 'm0'"``.
    minimum : float
        Smallest value allowed.
    exclusive : bool
        Whether `minimum` itself is refused.
    finite : bool
        Whether infinity is refused. NaN always is.
    error : type
        The error class to raise.

    Raises
    ------
    AlpaServeError
        Of class `error`, naming `what`, the value and the allowed range.
    """
    bound = "" if minimum == -math.inf else f" {'>' if exclusive else '>='} {minimum:g}"
    wanted = f"must be a {'finite ' if finite else ''}number{bound}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise error(f"{what} {wanted}, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        raise error(f"{what} {wanted}, got a number beyond 1e308") from None
    too_small = number <= minimum if exclusive else number < minimum
    if math.isnan(number) or too_small or (finite and math.isinf(number)):
        raise error(f"{what} {wanted}, got {value!r}")
    return number


def check_int(value: object, what: str, *, minimum: int, error: type[AlpaServeError] = InvalidConfigError) -> int:
    """Return `value` as an int after checking that it is a whole number of at least `minimum`.

    Raises
    ------
    AlpaServeError
        Of class `error`, naming `what` and the value.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < minimum:
        raise error(f"{what} must be a whole number >= {minimum}, got {value!r}")
    return int(value)


Name = TypeVar("Name", bound=str)


def check_known(name: object, known: Iterable[Name], what: str) -> Name:
    """Return `name` if it is among `known`.

    Raises
    ------
    UnknownNameError
        Listing the known names.
    """
    names = list(known)
    for candidate in names:
        if candidate == name:
            return candidate
    raise UnknownNameError(f"unknown {what} {name!r}; known: {', '.join(names)}")
