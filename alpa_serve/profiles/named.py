"""Profiles as command lines name them: which model has which."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alpa_serve.errors import InvalidConfigError
from alpa_serve.profiles.loading import load, sources
from alpa_serve.validation import check_known

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alpa_serve.profiles.result import ProfilingResult

NAMED_PROFILE = "NAME=PROFILED[@SOURCE|@FILE]"
"""The form of one, for help texts."""


def load_profiles(given: Sequence[str], names: Sequence[str]) -> dict[str, ProfilingResult]:
    """Return profiles by the name of the model that they are for.

    Parameters
    ----------
    given : sequence of str
        ``NAME=PROFILED``, ``NAME=PROFILED@SOURCE`` or ``NAME=PROFILED@FILE``: what
        :func:`alpa_serve.profiles.load` calls the model, and its source or file.
    names : sequence of str
        The models.

    Raises
    ------
    AlpaServeError, FileNotFoundError
        If a model is not known or given twice, or a profile cannot be loaded.
    """
    profiles: dict[str, ProfilingResult] = {}
    for text in given:
        name, equals, profiled = text.partition("=")
        if not (name and equals and profiled):
            raise InvalidConfigError(f"profile: NAME=PROFILED[@SOURCE or FILE] is wanted, got {text!r}")
        if check_known(name, names, "model") in profiles:
            raise InvalidConfigError(f"profile: {name} is given twice")
        model, at, where = profiled.partition("@")
        if not at:
            profiles[name] = load(model)
        elif where in sources():
            profiles[name] = load(model, where)
        else:
            profiles[name] = load(model, path=where)
    return profiles
