"""Making a workload of a trace: which model each request is for, and its SLO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from alpa_serve.errors import InvalidConfigError, InvalidTraceError
from alpa_serve.simulator.columnar_workload import Workload
from alpa_serve.simulator.trace_workload import TokenLatency
from alpa_serve.validation import check_int, check_known, check_real

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from alpa_serve.trace.llm.trace import LLMTrace

ASSIGNMENTS = ("uniform", "weights", "column")
"""How models are chosen for requests."""

MODEL_STREAM = 0x6D6F64
"""Entropy beside the seed, so that models are drawn independent of whatever else is drawn from that seed."""


def make_workload(
    trace: LLMTrace,
    models: Sequence[str] | Mapping[str, str],
    assign: str,
    *,
    slo: Any,
    load_times: Sequence[float] | Mapping[str, float] | None,
    weights: Sequence[float] | Mapping[str, float] | None,
    seed: int,
) -> Workload:
    """Return a workload, as :meth:`~alpa_serve.trace.llm.trace.LLMTrace.to_workload` says."""
    check_known(assign, ASSIGNMENTS, "assign")
    check_int(seed, "seed", minimum=0)
    names = _model_names(models, assign)
    if (weights is not None) != (assign == "weights"):
        raise InvalidConfigError(f'weights go with assign="weights", and only with it; got assign={assign!r}')
    loads = np.array(
        [_at_least_0(time, "load time (s)", n) for time, n in _per_model(load_times, names, 0.0, "load_times")]
    )
    shares = np.array([_at_least_0(weight, "weight", n) for weight, n in _per_model(weights, names, 1.0, "weights")])
    if not shares.sum():
        raise InvalidConfigError("at least one model must have a weight > 0")
    arrivals = trace.arrival_s - min(0.0, trace.arrival_s[0] if len(trace) else 0.0)
    if assign == "column":
        chosen = _named_models(trace, models, names)
        keep = np.flatnonzero(loads[chosen] <= arrivals)
    else:
        chosen = _drawn_models(arrivals, loads, shares, np.random.default_rng([MODEL_STREAM, seed]))
        keep = np.flatnonzero(chosen >= 0)
    model_ids = chosen[keep]
    outputs = None if trace.output_tokens is None else trace.output_tokens[keep]
    return Workload.from_columns(
        arrivals[keep],
        model_ids,
        names,
        _slos(trace, slo, names, model_ids, outputs),
        input_tokens=None if trace.input_tokens is None else trace.input_tokens[keep],
        output_tokens=outputs,
    )


def _model_names(models: Sequence[str] | Mapping[str, str], assign: str) -> list[str]:
    if isinstance(models, str) or not isinstance(models, Sequence | Mapping):
        raise InvalidConfigError(f"models must be a sequence of names, got {models!r}")
    if isinstance(models, Mapping):
        if assign != "column":
            raise InvalidConfigError(f'models can be a mapping only with assign="column", got assign={assign!r}')
        names = list(dict.fromkeys(models.values()))
    else:
        names = list(models)
    if not names or not all(isinstance(name, str) for name in names):
        raise InvalidConfigError(f"models must be names, at least one, got {names!r}")
    if len(set(names)) != len(names):
        raise InvalidConfigError(f"model names must differ, got {', '.join(names)}")
    return names


def _per_model(values: Any, names: list[str], default: Any, what: str) -> list[tuple[Any, str]]:
    """Return (value, name) of every model, from one value for all, a sequence or a mapping."""
    if values is None:
        return [(default, name) for name in names]
    if isinstance(values, Mapping):
        if set(values) != set(names):
            wanted, given = (", ".join(map(repr, keys)) for keys in (names, values))
            raise InvalidConfigError(f"{what} must have a value for each of {wanted}; got {given}")
        return [(values[name], name) for name in names]
    if isinstance(values, Sequence | np.ndarray) and not isinstance(values, str):
        if len(values) != len(names):
            raise InvalidConfigError(
                f"{what} has {len(values)} values for {len(names)} models; there must be one for each"
            )
        return list(zip(values, names, strict=True))
    return [(values, name) for name in names]


def _at_least_0(value: Any, what: str, name: str) -> float:
    return check_real(value, f"{what} of model {name!r}", minimum=0.0)


def _named_models(trace: LLMTrace, models: Sequence[str] | Mapping[str, str], names: list[str]) -> NDArray[np.int32]:
    if trace.model_codes is None:
        raise InvalidTraceError(f'{trace.name}: requests name no model; assign models by "uniform" or "weights"')
    served_by = models if isinstance(models, Mapping) else {name: name for name in names}
    used = np.unique(trace.model_codes)
    missing = [trace.model_names[code] for code in used if trace.model_names[code] not in served_by]
    if missing:
        raise InvalidTraceError(f"{trace.name}: no model given for {', '.join(missing)}, which requests name")
    ids = np.full(len(trace.model_names), -1, dtype=np.int32)
    ids[used] = [names.index(served_by[trace.model_names[code]]) for code in used]
    return ids[trace.model_codes]


def _drawn_models(
    arrivals: NDArray[np.float64], loads: NDArray[np.float64], shares: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int32]:
    """Return a loaded model for each arrival, -1 while none is loaded that has a share."""
    order = np.argsort(loads, kind="stable")
    cumulative = np.concatenate([[0.0], np.cumsum(shares[order])])
    total = cumulative[np.searchsorted(loads[order], arrivals, side="right")]
    place = np.searchsorted(cumulative, rng.random(len(arrivals)) * total, side="right") - 1
    return np.where(total > 0, order[np.minimum(place, len(order) - 1)], -1).astype(np.int32)


def _slos(
    trace: LLMTrace, slo: Any, names: list[str], model_ids: NDArray[np.int32], outputs: NDArray[np.int32] | None
) -> NDArray[np.float64] | None:
    if slo is None:
        return None
    fixed, per_token = np.zeros(len(names)), np.zeros(len(names))
    for position, (entry, name) in enumerate(_per_model(slo, names, None, "slo")):
        if isinstance(entry, TokenLatency):
            fixed[position] = _at_least_0(entry.ttft_s, "TTFT (s)", name)
            per_token[position] = _at_least_0(entry.tpot_s, "TPOT (s)", name)
        else:
            what = f"SLO (s, or a TokenLatency) of model {name!r}"
            fixed[position] = check_real(entry, what, minimum=0.0, finite=False)
    if not per_token.any():
        return fixed[model_ids]
    if outputs is None:
        raise InvalidTraceError(f"{trace.name}: this trace has no output tokens, which an SLO by TPOT depends on")
    return fixed[model_ids] + per_token[model_ids] * outputs
