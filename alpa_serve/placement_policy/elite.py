"""The best placements that a search has found, and what can be put together from their islands."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from alpa_serve.placement import ModelPlacement
from alpa_serve.placement_policy.evaluator import linked_groups

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from alpa_serve.placement import ClusterEnv
    from alpa_serve.placement_policy.evaluator import Evaluation, PlacementEvaluator
    from alpa_serve.profiling import ParallelConfig

SIZE = 8
"""Placements that are kept."""

MOST_ISLANDS = 300
"""Islands that are kept to put placements together from."""

_NODE_LIMIT = 200
"""Branches of the integer program: a limit that does not depend on the speed of the machine."""

_ATTEMPTS = 5

Island = tuple[tuple["ParallelConfig", tuple[int, ...]], ...]


class Member(NamedTuple):
    """A placement and what it attains."""

    placement: ModelPlacement
    evaluation: Evaluation
    rank: tuple[int, float]


class Elite:
    """The best placements so far, the best first.

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
        self._islands: dict[Island, float] = {}

    @property
    def best(self) -> Member:
        """The best placement; on a tie the first."""
        return self._members[0]

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
        if self._evaluator.follows_changes:
            self._note_islands(placement, evaluation)
        placed = len(placement.placed_models()) if self._require_all_models else 0
        new = Member(placement, evaluation, (placed, evaluation.score))
        normalized = placement.normalize()
        others = [member for member in self._members if member.placement.normalize() != normalized]
        same = [member for member in self._members if member.placement.normalize() == normalized]
        if any(member.rank >= new.rank for member in same):
            return
        # one step, as Ctrl-C may come at any time
        self._members = sorted([*others, new], key=lambda member: member.rank, reverse=True)[:SIZE]

    def _note_islands(self, placement: ModelPlacement, evaluation: Evaluation) -> None:
        for groups in linked_groups(placement.group_models):
            models = {model for group in groups for model in placement.group_models[group]}
            island = tuple(
                sorted((placement.group_configs[g], tuple(sorted(placement.group_models[g]))) for g in groups)
            )
            if models:
                self._islands[island] = float(sum(evaluation.model_num_good[model] for model in models))

    def combine(self, cluster_env: ClusterEnv) -> None:
        """Add the best placement made of islands that were seen, where islands do not influence each other.

        An integer program chooses islands that share no model and fit the devices, such that most requests are good.
        """
        if not self._evaluator.follows_changes or len(self._islands) < 2:
            return
        islands = self._best_islands()
        sizes = np.array([sum(config.num_devices for config, _ in island) for island in islands], dtype=np.float64)
        counts = np.array([self._islands[island] for island in islands])
        forbidden: list[NDArray[np.int64]] = []
        for _ in range(_ATTEMPTS):
            chosen = _choose(islands, sizes, counts, cluster_env.num_devices, forbidden)
            if chosen is None:
                return
            groups = [group for number in chosen.tolist() for group in islands[number]]
            if cluster_env.can_hold([config.num_devices for config, _ in groups]):
                self.add(ModelPlacement([config for config, _ in groups], [list(models) for _, models in groups]))
                return
            # these islands do not fit the nodes together
            forbidden.append(chosen)

    def _best_islands(self) -> list[Island]:
        """Return the islands with most good requests per device, and forget the others."""

        def density(island: Island) -> float:
            return self._islands[island] / sum(config.num_devices for config, _ in island)

        kept = sorted(self._islands, key=density, reverse=True)[:MOST_ISLANDS]
        self._islands = {island: self._islands[island] for island in kept}
        return kept


def _choose(
    islands: list[Island],
    sizes: NDArray[np.float64],
    counts: NDArray[np.float64],
    num_devices: int,
    forbidden: list[NDArray[np.int64]],
) -> NDArray[np.int64] | None:
    """Return the numbers of islands with most good requests that share no model and fit the devices."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    rows, columns = [], []
    models = sorted({model for island in islands for _, members in island for model in members})
    row_of = {model: row for row, model in enumerate(models)}
    for number, island in enumerate(islands):
        for model in {model for _, members in island for model in members}:
            rows.append(row_of[model])
            columns.append(number)
    shape = (len(models), len(islands))
    once = csr_array((np.ones(len(rows)), (np.array(rows, np.int32), np.array(columns, np.int32))), shape=shape)
    constraints = [LinearConstraint(once, ub=1.0), LinearConstraint(sizes[np.newaxis], ub=float(num_devices))]
    for chosen in forbidden:
        cut = np.zeros((1, len(islands)))
        cut[0, chosen] = 1.0
        constraints.append(LinearConstraint(cut, ub=len(chosen) - 1.0))
    # a little for few devices, so that ties leave room
    solution = milp(
        -counts + 1e-3 * sizes,
        integrality=np.ones(len(islands), np.int64),
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"node_limit": _NODE_LIMIT},
    )
    if solution.x is None:
        return None
    return np.flatnonzero(solution.x > 0.5)
