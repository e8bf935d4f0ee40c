"""What the planners answer: how much it takes to reach an SLO attainment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from alpa_serve.placement import ModelPlacement

ROUNDING = 1e-9
"""Attainments that differ by less are the same."""


@dataclass(frozen=True)
class SizeTried:
    """What is known of a number of devices.

    Attributes
    ----------
    num_devices : int
    attainment : float or None
        SLO attainment of the best placement known for so many devices; None if nothing was placed.
    bound : float
        SLO attainment that no placement on so many devices exceeds.
    """

    num_devices: int
    attainment: float | None
    bound: float


@dataclass(frozen=True)
class CapacityPlan:
    """The fewest devices found that reach a target.

    Attributes
    ----------
    num_devices : int
    placement : ModelPlacement
        On `num_devices` devices.
    attainment : float
        SLO attainment of `placement`.
    target : float
    proven_minimum : int
        Fewest devices that the upper bound does not rule out.
    tried : tuple of SizeTried
        Every number of devices that was searched or bounded, ascending; neither attainments nor bounds descend. What
        bounds a larger number bounds a smaller one.
    """

    num_devices: int
    placement: ModelPlacement
    attainment: float
    target: float
    proven_minimum: int
    tried: tuple[SizeTried, ...]

    def summary(self) -> str:
        """Return what was found and what was tried as text, without the placement."""
        if self.num_devices == self.proven_minimum:
            proof = "fewer cannot reach it"
        elif self.proven_minimum == 1:
            proof = "fewer are not ruled out"
        else:
            proof = f"fewer than {self.proven_minimum} cannot reach it"
        devices = "1 device attains" if self.num_devices == 1 else f"{self.num_devices} devices attain"
        rows = [(str(size.num_devices), size.attainment, size.bound) for size in self.tried]
        return (
            f"{devices} {self.attainment:.4f} (target {self.target:g}); {proof}\n\n"
            f"{_table('devices', rows, self.target)}"
        )

    def __str__(self) -> str:
        return f"{self.summary()}\n\n{self.placement}"


@dataclass(frozen=True)
class ScaleTried:
    """What is known of a scale.

    Attributes
    ----------
    scale : float
    attainment : float or None
        SLO attainment of the best placement found for it; None if nothing was searched.
    bound : float or None
        SLO attainment that no placement exceeds; None where it was not asked for.
    """

    scale: float
    attainment: float | None
    bound: float | None


@dataclass(frozen=True)
class ScalePlan:
    """The hardest scale found at which a cluster reaches a target.

    Attributes
    ----------
    axis : str
        What is scaled: "rate" (arrivals compressed in time by the factor) or "slo" (the factor on every SLO).
    scale : float
        The highest rate scale, or the tightest SLO scale, at which `placement` reaches the target.
    placement : ModelPlacement
    attainment : float
        SLO attainment of `placement` at `scale`.
    target : float
    ruled_out : float or None
        The mildest scale tried that the upper bound rules out: lowest rate scale, loosest SLO scale.
    tried : tuple of ScaleTried
        Every scale that was searched or bounded, ascending.
    """

    axis: str
    scale: float
    placement: ModelPlacement
    attainment: float
    target: float
    ruled_out: float | None
    tried: tuple[ScaleTried, ...]

    def summary(self) -> str:
        """Return what was found and what was tried as text, without the placement."""
        proof = "no scale is ruled out" if self.ruled_out is None else f"{self.ruled_out:.4g} cannot reach it"
        rows = [(f"{point.scale:.4g}", point.attainment, point.bound) for point in self.tried]
        return (
            f"{self.axis} scale {self.scale:.4g} attains {self.attainment:.4f} (target {self.target:g}); {proof}"
            f"\n\n{_table(f'{self.axis} scale', rows, self.target)}"
        )

    def __str__(self) -> str:
        return f"{self.summary()}\n\n{self.placement}"


def _table(title: str, rows: Iterable[tuple[str, float | None, float | None]], target: float) -> str:
    """Write what was tried: (point, attainment, bound) each, with what follows from it."""
    lines = [f" {title:>10}   attains   at most"]
    for point, attainment, bound in rows:
        if attainment is not None and attainment >= target - ROUNDING:
            said = "   reached"
        elif bound is not None and bound < target - ROUNDING:
            said = "   impossible"
        else:
            said = ""
        figures = ["" if figure is None else f"{figure:.4f}" for figure in (attainment, bound)]
        lines.append(f" {point:>10}   {figures[0]:>7}   {figures[1]:>7}{said}".rstrip())
    return "\n".join(lines)
