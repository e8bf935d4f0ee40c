"""The rules by which a cluster serves requests."""

from __future__ import annotations

import math
from dataclasses import dataclass

from alpa_serve.errors import InvalidConfigError
from alpa_serve.validation import check_int, check_known, check_real

CHOICES = {
    "execution": ("pipelined", "exclusive"),
    "queueing": ("per_group", "global_fifo"),
    "dispatch": ("least_loaded", "random"),
    "admission": ("deadline", "all"),
    "service": ("profile", "tokens"),
}
"""What each rule can be."""

WAY_IN_SHARE = 5 / 11
"""Share of `fixed_overhead_s` that a request has behind it when a controller places it on a group: 5 ms of AlpaServe's
11 ms."""

_SECONDS = ("fixed_overhead_s", "dispatch_interval_s", "request_overhead_s", "idle_penalty_s")


@dataclass(frozen=True, kw_only=True)
class ServingRules:
    """How a cluster serves: what simulators, searches and runtime take for granted about it.

    Every field has AlpaServe's value by default, so ``ServingRules()`` is :data:`ALPASERVE`; change single fields with
    :func:`dataclasses.replace`.

    Attributes
    ----------
    execution : {"pipelined", "exclusive"}
        Whether the stages of a group work on different requests at the same time, or a request holds all devices of
        its group from start to end.
    queueing : {"per_group", "global_fifo"}
        Whether each group has a queue of its own, or one queue feeds all groups: requests then start in the order of
        arrival, and one whose group is busy holds up all behind it.
    dispatch : {"least_loaded", "random"}
        Which replica a request goes to: the one whose group has done its admitted work first (on a tie the group with
        the lowest number), or any with equal chance.
    admission : {"deadline", "all"}
        Whether a request that would miss its SLO is dropped, or all are served and the SLO is judged afterwards.
    service : {"profile", "tokens"}
        Where the time on a group comes from: the profiled latency of each stage, or the prefill and decode times of the
        profile and the request's own token counts, spread evenly over the stages.
    stage_penalty : float
        A stage takes ``1 + stage_penalty * pp`` times its time; pp is the number of stages.
    fixed_overhead_s : float
        Seconds that every request spends outside its group, without holding it.
    dispatch_interval_s : float
        Seconds between the moment when a request could start and its start, and at least as many between the starts of
        requests from the same queue: the dispatcher's polling.
    request_overhead_s : float
        Seconds by which every request holds its group beyond its service, spread evenly over the stages.
    idle_after_s, idle_penalty_s : float
        A group that had nothing to do for more than `idle_after_s` seconds takes `idle_penalty_s` seconds longer on
        every stage for the next request.
    overhead_jitter : float
        Standard deviation of each of the delays that make up `fixed_overhead_s` in the event-driven simulator, as a
        fraction of `fixed_overhead_s`; the compiled simulator has no such delays.
    seed : int
        Of random dispatch and of the delays.

    Raises
    ------
    UnknownNameError
        If a rule is none of its choices.
    InvalidConfigError
        If a figure is out of range, or two fields contradict each other.
    """

    execution: str = "pipelined"
    queueing: str = "per_group"
    dispatch: str = "least_loaded"
    admission: str = "deadline"
    service: str = "profile"
    stage_penalty: float = 0.009
    fixed_overhead_s: float = 0.011
    dispatch_interval_s: float = 0.0
    request_overhead_s: float = 0.0
    idle_after_s: float = math.inf
    idle_penalty_s: float = 0.0
    overhead_jitter: float = 0.5 / 11
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            check_known(getattr(self, name), choices, f"{name} rule")
        check_real(self.stage_penalty, "stage_penalty", minimum=0.0)
        for name in _SECONDS:
            check_real(getattr(self, name), f"{name} (s)", minimum=0.0)
        check_real(self.idle_after_s, "idle_after_s (s)", minimum=0.0, finite=False)
        check_real(self.overhead_jitter, "overhead_jitter", minimum=0.0)
        for name in ("stage_penalty", *_SECONDS, "idle_after_s", "overhead_jitter"):
            # one kind of number, whatever was given: the compiled simulator is compiled anew for another
            object.__setattr__(self, name, float(getattr(self, name)))
        check_int(self.seed, "seed", minimum=0)
        if self.idle_penalty_s > 0 and math.isinf(self.idle_after_s):
            raise InvalidConfigError(
                f"idle_penalty_s is {self.idle_penalty_s:g} s but idle_after_s is infinite, so that no group ever "
                "counts as idle; set idle_after_s too"
            )


def check_rules(rules: object) -> ServingRules:
    """Return `rules` if they are ServingRules.

    Raises
    ------
    InvalidConfigError
        If they are something else.
    """
    if not isinstance(rules, ServingRules):
        raise InvalidConfigError(f"rules must be ServingRules, such as ALPASERVE or MAVERIQ, got {rules!r}")
    return rules


ALPASERVE = ServingRules()
"""What AlpaServe's simulator takes for granted (Z. Li et al., AlpaServe, OSDI 2023)."""

RUNTIME = ServingRules(stage_penalty=0.0, fixed_overhead_s=0.006)
"""What the runtime of this package takes for granted: stages take their profiled time, and a request spends some more
on its way through the HTTP server, to its group and back (``benchmarks/served_against_simulated.py`` measures it).
"""

MAVERIQ = ServingRules(
    execution="exclusive",
    queueing="global_fifo",
    dispatch="random",
    admission="all",
    service="tokens",
    stage_penalty=0.0,
    fixed_overhead_s=0.0,
    dispatch_interval_s=0.007,
    request_overhead_s=0.021,
    idle_after_s=15.0,
    idle_penalty_s=0.063,
    overhead_jitter=0.0,
)
"""What MaverIQ's serving of the published placements on 8 RTX A6000 was measured to do.

The figures were read off five recorded runs, rounded to 1 ms (``benchmarks/hardware_fidelity.py --estimate`` recomputes
them). ``dispatch_interval_s``: start minus the earliest possible start, median of each run, mean over the runs.
``request_overhead_s``: service minus the n - 1 decode steps of the profile that n output tokens take after the first,
mean over the models and configs: the prefill of prompts of at most 512 characters, which were not recorded, and the
handling of a request. ``idle_penalty_s``: how much longer service takes after a pause, mean over all such requests;
from 15 s on, pauses in the trace show it, and no run tells what happens to the GPUs then.
"""

RULES_BY_NAME = {"alpaserve": ALPASERVE, "maveriq": MAVERIQ, "runtime": RUNTIME}
"""What command lines call the rules of this package."""
