"""How long a replica takes for a request, by its model's profile and the serving rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from alpa_serve.profiling import ParallelConfig, ProfilingResult
    from alpa_serve.scheduling.rules import ServingRules


class ReplicaTiming(NamedTuple):
    """Stage k takes ``latency[k] + input_rate * input_tokens + further_rate * max(output_tokens - 1, 0)`` seconds.

    Attributes
    ----------
    latency : tuple of float, length pp
        Seconds per stage.
    input_rate, further_rate : float
        Seconds per stage for each input token, and for each output token after the first; 0 unless service is by
        tokens.
    """

    latency: tuple[float, ...]
    input_rate: float = 0.0
    further_rate: float = 0.0

    def scaled(self, factor: float) -> ReplicaTiming:
        """Return the timing of a replica that takes `factor` times as long."""
        if factor == 1.0:
            return self
        latency = tuple(seconds * factor for seconds in self.latency)
        return ReplicaTiming(latency, self.input_rate * factor, self.further_rate * factor)


def replica_timing(
    profile: ProfilingResult, config: ParallelConfig, rules: ServingRules, batch_size: int = 1
) -> ReplicaTiming:
    """Return how long a replica of the profiled model takes on a group of `config`.

    Raises
    ------
    InvalidProfileError
        If the profile lacks the config or the batch size or, under token service, prefill and decode times for them.
    """
    slowdown = 1 + rules.stage_penalty * config.pp
    overhead = rules.request_overhead_s / config.pp
    if rules.service == "profile":
        stages = profile.stage_latency(config, batch_size)
        return ReplicaTiming(tuple(latency * slowdown + overhead for latency in stages))
    fixed, per_input_token, per_further_token = profile.prefill_decode(config, batch_size).coefficients
    share = slowdown / config.pp
    return ReplicaTiming(
        (fixed * share + overhead,) * config.pp,
        per_input_token * share,
        per_further_token * share,
    )
