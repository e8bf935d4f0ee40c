"""How long a request is on its way between client, controller and group in the event-driven simulator."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.scheduling.rules import WAY_IN_SHARE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alpa_serve.scheduling import ServingRules

HTTP_SHARE, DISPATCH_SHARE, GROUP_SHARE, RESPONSE_SHARE = WAY_IN_SHARE / 2, WAY_IN_SHARE / 2, 5 / 11, 1 / 11
"""How `fixed_overhead_s` (AlpaServe's 11 ms) is spent: 2.5 ms to the controller, 2.5 ms in it, 5 ms to the group and in
its manager, 1 ms back. The first three are AlpaServe's figures."""

MARGIN_DEVIATIONS = 2
"""Standard deviations of a delay that admission keeps in reserve: 1 ms with AlpaServe's jitter, beside the response's
1 ms. AlpaServe keeps 4 ms, but leaves the pipeline penalty out of its reckoning, which is in here."""

_DELAY_STREAM = 0x64656C
_DRAWS_AT_ONCE = 4096

Delays = tuple[float, float, float]
"""Seconds that a request spends on its way to the controller, in the controller, and on its way to its group."""


def draw_delays(rules: ServingRules, num_earlier: int = 0) -> Iterator[Delays]:
    """Yield the delays of one request after the other, without end: |Normal(share of the overhead, jitter)|.

    Those of the first `num_earlier` requests are left out.
    """
    means = np.array([HTTP_SHARE, DISPATCH_SHARE, GROUP_SHARE]) * rules.fixed_overhead_s
    deviation = rules.overhead_jitter * rules.fixed_overhead_s
    if deviation == 0:
        yield from itertools.repeat((means[0].item(), means[1].item(), means[2].item()))
    generator = np.random.default_rng([_DELAY_STREAM, rules.seed])
    generator.normal(size=(num_earlier, 3))
    while True:
        block = np.abs(generator.normal(means, deviation, size=(_DRAWS_AT_ONCE, 3)))
        yield from zip(*block.T.tolist(), strict=True)
