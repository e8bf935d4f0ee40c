"""AlpaServe's registration calls: what they carry, and their checks, for every controller that takes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from alpa_serve.errors import InvalidConfigError, InvalidPlacementError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence


@dataclass(frozen=True)
class CreateInfo:
    """How to make a replica of a model.

    Attributes
    ----------
    model_def : callable
    init_args : tuple
    init_kwargs : dict
    """

    model_def: Callable[..., Any]
    init_args: tuple[Any, ...] = ()
    init_kwargs: dict[str, Any] = field(default_factory=dict)


def create_info(
    name: str, model_def: object, init_args: Sequence[Any] | None, init_kwargs: Mapping[str, Any] | None
) -> CreateInfo:
    """Return how to make replicas of the model that is being registered.

    Raises
    ------
    InvalidConfigError
        If `model_def` cannot be called.
    """
    if not callable(model_def):
        raise InvalidConfigError(f"model {name!r}: model_def must be callable, got {model_def!r}")
    return CreateInfo(model_def, tuple(init_args or ()), dict(init_kwargs or {}))


def check_new_name(name: str, known: Collection[str], override: bool) -> None:
    """Check that a model of this name can be registered."""
    if name in known and not override:
        raise InvalidConfigError(f"model {name!r} is registered already; pass override=True to replace it")


def check_new_group(group_id: int, known: Collection[int]) -> None:
    """Check that a group of this id can be created."""
    if group_id in known:
        raise InvalidPlacementError(f"group {group_id} exists already")


def check_replica(name: str, group_id: int, models: Collection[Any], groups: Collection[int]) -> None:
    """Check that a replica of this model can be created in this group."""
    if name not in models:
        raise InvalidPlacementError(f"replica of {name!r}: not registered; registered: {', '.join(models)}")
    if group_id not in groups:
        raise InvalidPlacementError(f"replica of {name!r}: no group {group_id}")
