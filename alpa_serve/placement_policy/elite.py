"""The best placements that a search has found."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from alpa_serve.placement import ModelPlacement
    from alpa_serve.placement_policy.evaluator import Evaluation, PlacementEvaluator

SIZE = 8
"""Placements that are kept."""


class Member(NamedTuple):
    """A placement and what it attains."""

    placement: ModelPlacement
    evaluation: Evaluation
    rank: tuple[int, float, float]


class Elite:
    """The best placements so far: those of the highest SLO attainment first, of equal attainment of the highest score.

    Parameters
    ----------
    evaluator : PlacementEvaluator
    require_all_models : bool
        Whether a placement with more models is better, whatever it attains.
    """

    def __init__(self, evaluator: PlacementEvaluator, require_all_models: bool) -> None:
        self._evaluator = evaluator
        self._require_all_models = require_all_models
        self._members: list[Member] = []

    @property
    def best(self) -> Member:
        """The best placement; on a tie the first."""
        return self._members[0]

    @property
    def is_perfect(self) -> bool:
        """Whether all requests meet their SLO, and all models are placed where that is required."""
        if not self._members or self.best.evaluation.goodput < 1:
            return False
        num_models = len(self._evaluator.model_datas)
        return not self._require_all_models or len(self.best.placement.placed_models()) == num_models

    @property
    def placements(self) -> list[ModelPlacement]:
        """The placements, the best first."""
        return [member.placement for member in self._members]

    def some(self, seed: int) -> ModelPlacement:
        """Return one of the placements at random."""
        return self._members[int(np.random.default_rng(seed).integers(len(self._members)))].placement

    def add(self, placement: ModelPlacement) -> None:
        """Add a placement if it is among the best, and better than the same in another order of groups."""
        evaluation = self._evaluator.evaluate(placement)
        placed = len(placement.placed_models()) if self._require_all_models else 0
        new = Member(placement, evaluation, (placed, evaluation.goodput, evaluation.score))
        normalized = placement.normalize()
        others = [member for member in self._members if member.placement.normalize() != normalized]
        same = [member for member in self._members if member.placement.normalize() == normalized]
        if any(member.rank >= new.rank for member in same):
            return
        # one step, as Ctrl-C may come at any time
        self._members = sorted([*others, new], key=lambda member: member.rank, reverse=True)[:SIZE]
