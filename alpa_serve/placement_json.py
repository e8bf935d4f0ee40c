"""A placement as a JSON document and back.

``models`` names all models, in the order of their ids; a group lists the names of those that it holds::

    {"format": "alpa_serve placement", "version": 1, "models": ["m1", "m2"],
     "groups": [{"dp": 1, "op": 4, "pp": 2, "models": ["m2"]}]}
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from alpa_serve.errors import InvalidConfigError, InvalidPlacementError
from alpa_serve.placement import ModelPlacement
from alpa_serve.profiling import ParallelConfig
from alpa_serve.validation import check_int

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

FORMAT, VERSION = "alpa_serve placement", 1

_KEYS = ("format", "version", "models", "groups")
_GROUP_KEYS = ("dp", "op", "pp", "models")


class NamedPlacement(NamedTuple):
    """A placement and what its models are called.

    Attributes
    ----------
    placement : ModelPlacement
    model_names : tuple of str
        By id.
    """

    placement: ModelPlacement
    model_names: tuple[str, ...]


def to_json(placement: ModelPlacement, model_names: Sequence[str]) -> str:
    """Write a placement as JSON.

    Parameters
    ----------
    placement : ModelPlacement
    model_names : sequence of str
        The name of each model, by id; no two are the same.

    Raises
    ------
    InvalidConfigError
        If two names are the same.
    InvalidPlacementError
        If the placement holds a model that has no name.
    """
    names = list(model_names)
    if len(set(names)) != len(names):
        raise InvalidConfigError(f"model names must differ, got {names}")
    groups = []
    for group_id, (config, members) in enumerate(zip(placement.group_configs, placement.group_models, strict=True)):
        unknown = [model_id for model_id in members if model_id >= len(names)]
        if unknown:
            raise InvalidPlacementError(f"group {group_id}: no model {unknown[0]}; models are 0 to {len(names) - 1}")
        groups.append({**config._asdict(), "models": [names[model_id] for model_id in members]})
    head = json.dumps({"format": FORMAT, "version": VERSION, "models": names})
    rows = ",\n  ".join(json.dumps(group) for group in groups)
    return f'{head[:-1]}, "groups": [\n  {rows}\n]}}\n' if groups else f'{head[:-1]}, "groups": []}}\n'


def from_json(text: str, model_names: Sequence[str] | None = None, *, source: str = "placement") -> NamedPlacement:
    """Read what :func:`to_json` writes.

    Parameters
    ----------
    text : str
    model_names : sequence of str, optional
        The models that there are, whose positions are the ids of the result; by default those that the text names.
    source : str
        Name of the file, for messages.

    Raises
    ------
    InvalidPlacementError
        Naming file and key of what is wrong: not JSON, another format, a key that is missing or not known, a degree
        that is no whole number >= 1, a model that is not known or twice in a group.
    """
    try:
        document = json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise InvalidPlacementError(f"{source}: not JSON: {error}") from None
    _check_keys(document, _KEYS, source)
    if document["format"] != FORMAT:
        raise InvalidPlacementError(f"{source}, format: {FORMAT!r} is wanted, got {document['format']!r}")
    if type(document["version"]) is not int or document["version"] != VERSION:
        raise InvalidPlacementError(f"{source}, version: {VERSION} is wanted, got {document['version']!r}")
    own = _names(document["models"], f"{source}, models")
    known = own if model_names is None else list(model_names)
    ids = {name: model_id for model_id, name in enumerate(known)}
    for position, name in enumerate(own):
        if name not in ids:
            raise InvalidPlacementError(
                f"{source}, models[{position}]: unknown model {name!r}; known: {', '.join(known)}"
            )
    if not isinstance(document["groups"], list):
        raise InvalidPlacementError(f"{source}, groups: a list is wanted, got {document['groups']!r}")
    configs, members = [], []
    for group_id, group in enumerate(document["groups"]):
        where = f"{source}, groups[{group_id}]"
        _check_keys(group, _GROUP_KEYS, where)
        degrees = (
            check_int(group[key], f"{where}, {key}", minimum=1, error=InvalidPlacementError) for key in _GROUP_KEYS[:3]
        )
        configs.append(ParallelConfig(*degrees))
        names = _names(group["models"], f"{where}, models")
        for position, name in enumerate(names):
            if name not in own:
                raise InvalidPlacementError(
                    f"{where}, models[{position}]: {name!r} is not among the models: {', '.join(own)}"
                )
        members.append([ids[name] for name in names])
    return NamedPlacement(ModelPlacement(configs, members), tuple(known))


def read_placement(path: str | os.PathLike[str], model_names: Sequence[str] | None = None) -> NamedPlacement:
    """Read a file in the form of :func:`to_json`; arguments and errors are those of :func:`from_json`.

    Raises
    ------
    InvalidPlacementError
        Also if there is no such file, or it is no text.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidPlacementError(f"{path}: cannot be read: {error}") from None
    return from_json(text, model_names, source=str(path))


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for position, key in enumerate(keys):
        if key in keys[:position]:
            raise ValueError(f"the key {key!r} is given twice")
    return dict(pairs)


def _check_keys(found: object, keys: Sequence[str], where: str) -> None:
    if not isinstance(found, dict):
        raise InvalidPlacementError(f"{where}: an object with {', '.join(keys)} is wanted, got {found!r}")
    for key in keys:
        if key not in found:
            raise InvalidPlacementError(f"{where}: no key {key!r}; found: {', '.join(found)}")
    for key in found:
        if key not in keys:
            raise InvalidPlacementError(f"{where}: unknown key {key!r}; known: {', '.join(keys)}")


def _names(found: object, where: str) -> list[str]:
    if not isinstance(found, list):
        raise InvalidPlacementError(f"{where}: a list of names is wanted, got {found!r}")
    for position, name in enumerate(found):
        if not isinstance(name, str) or not name:
            raise InvalidPlacementError(f"{where}[{position}]: a name is wanted, got {name!r}")
        if name in found[:position]:
            raise InvalidPlacementError(f"{where}[{position}]: {name!r} is given twice")
    return found
