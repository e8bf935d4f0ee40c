"""Random numbers for compiled searches: a generator whose whole state is one number, so that a chain owns its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.simulator.compiled import inlined

if TYPE_CHECKING:
    from numpy.typing import NDArray


@inlined
def uniform(random: NDArray[np.uint64]) -> float:
    """Draw from [0, 1) and advance the state, shape (1,).

    References
    ----------
    G. L. Steele Jr., D. Lea, C. H. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014 (SplitMix64).
    """
    random[0] += np.uint64(0x9E3779B97F4A7C15)
    z = random[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return np.float64(z >> np.uint64(11)) / 9007199254740992.0


@inlined
def below(random: NDArray[np.uint64], number: int) -> int:
    """Draw a whole number from 0 to `number` - 1."""
    return int(uniform(random) * number)
