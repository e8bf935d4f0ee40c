"""Workloads that follow the minute counts of a recorded trace, as MaverIQ's evaluation makes them."""

from __future__ import annotations

import random as stdlib_random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from alpa_serve.errors import InvalidConfigError, InvalidTraceError, InvalidWorkloadError, UnknownNameError
from alpa_serve.simulator.arrivals import ArrivalProcess, check_expected_count
from alpa_serve.simulator.columnar_workload import Workload
from alpa_serve.simulator.columns import MAX_TOKENS
from alpa_serve.simulator.trace_tokens import TokenPercentiles, TraceTokens, token_generator
from alpa_serve.simulator.util import legacy_random
from alpa_serve.validation import check_int, check_known, check_real

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

STEP_S = 30.0
"""Seconds into which one minute of the trace is squeezed."""

STEP_FILLED_S = 29.9
"""Seconds of a step within which its requests arrive."""

LOAD_S = 90.0
"""Seconds by which every loaded model moves all later requests."""

MAX_TRACE_MINUTES = 10 * 366 * 1440
"""A trace that spans more is taken to have a wrong date in it."""

DATE_START = r"\s*\d{4}-\d\d-\d\d"
"""How text must begin to count as a date; pandas alone takes "now" for one."""

PROMPT_OFFSET = 65
"""Request n takes prompt n + 65 of the shuffled data set."""

PROMPT_CHARACTERS = 512
"""Prompts are cut to this length."""

TOKEN_SOURCES = ("output_length", "trace")
"""Where a workload may take its token counts from, by name; the third source is a TokenPercentiles."""


@dataclass(frozen=True)
class TokenLatency:
    """Seconds to the first token (TTFT) and per further output token (TPOT)."""

    ttft_s: float
    tpot_s: float


TOKEN_LATENCIES = {
    "llama-2-7b": TokenLatency(0.095533915, 0.024334018),
    "llama-2-13b": TokenLatency(0.20458082199096672, 0.042090748),
    "llama-2-70b": TokenLatency(1.0234498834609982, 0.20715084600448613),
    "falcon-7b": TokenLatency(0.094534717, 0.023615638256073004),
    "falcon-40b": TokenLatency(0.6126346445083621, 0.12438445138931271),
    "gptj-6b": TokenLatency(0.092631068, 0.020843485),
}
"""MaverIQ's measurements on one A6000 each (more where the model needs them), from which it derives SLOs."""


def model_slo(model_name: str, output_length: float, slo_scale: float) -> float:
    """Return the SLO in seconds: `slo_scale` times (TTFT + TPOT * `output_length`) of the model.

    Raises
    ------
    UnknownNameError
        If the model was not measured; the message lists those that were.
    """
    latency = TOKEN_LATENCIES[check_known(model_name, TOKEN_LATENCIES, "model")]
    return slo_scale * (latency.ttft_s + latency.tpot_s * output_length)


@runtime_checkable
class FrameTrace(Protocol):
    """A trace that can be made a table, such as :class:`~alpa_serve.trace.llm.trace.LLMTrace`."""

    def to_frame(self) -> pd.DataFrame:
        """Return a table with a column TIMESTAMP of dates, and those of the token counts if they are known."""


@runtime_checkable
class CountedTrace(Protocol):
    """A trace that knows its requests per minute only, such as the Azure Functions traces."""

    def minute_counts(self) -> NDArray[np.int64]:
        """Return the requests per minute, shape (minutes,)."""


class WorkloadFromTrace(ArrivalProcess):
    """Requests whose number per step follows a trace.

    The timestamps are rounded to the nearest minute and counted; the counts are scaled, truncated, and played twice,
    a minute of the trace in 30 s.

    Parameters
    ----------
    rate_scale : float
        Factor on the requests per minute, > 0.
    trace : pandas.DataFrame, FrameTrace or CountedTrace
        A table with a column TIMESTAMP of datetimes (or text that says one), and ContextTokens and GeneratedTokens
        if token counts are to come from the trace; or what has such a table (``to_frame()``), as every LLM trace and
        every replay has; or else requests per minute (``minute_counts()``), as the Azure Functions traces have.

    Raises
    ------
    InvalidTraceError
        If there is no such column, it is empty, or an entry is no date; or a count per minute is no count.
    """

    def __init__(self, rate_scale: float, trace: pd.DataFrame | FrameTrace | CountedTrace) -> None:
        self.rate_scale = check_real(rate_scale, "rate_scale", minimum=0.0, exclusive=True)
        self.minute_counts: NDArray[np.int64]
        self._trace_tokens: TraceTokens | None = None
        table, counts = _table_or_counts(trace)
        if table is None:
            self.minute_counts = _checked_counts(counts)
        else:
            minutes = _minutes(table)
            self.minute_counts = np.bincount(minutes)
            self._trace_tokens = TraceTokens(table, minutes)
        scaled = self.minute_counts * self.rate_scale
        check_expected_count(2 * float(scaled.sum()), f"rate_scale {rate_scale:g}")
        once = scaled.astype(np.int64)
        self.step_counts: NDArray[np.int64] = np.concatenate([once, once])

    @classmethod
    def from_step_counts(cls, step_counts: Sequence[int] | NDArray[np.integer[Any]]) -> WorkloadFromTrace:
        """Return the process of a load that is known by steps of 30 s, each of which is played once, as it is.

        Parameters
        ----------
        step_counts : sequence of int, shape (num_steps,)
            Requests of each step. They stand for the minutes of a trace too (`minute_counts`), at rate scale 1.

        Raises
        ------
        InvalidTraceError
            If one is no count, or there is no request.
        """
        process = cls.__new__(cls)
        counts = _checked_counts(step_counts, "requests per step")
        check_expected_count(float(counts.sum()), "step_counts")
        process.rate_scale = 1.0
        process.minute_counts, process.step_counts = counts, counts.copy()
        process._trace_tokens = None
        return process

    def rate(self) -> float:
        """Return the requests per second of the steps, before models take time to load."""
        return float(self.step_counts.sum()) / (STEP_S * len(self.step_counts))

    def cv(self) -> float:
        """Return the coefficient of variation of the gaps, from their expected first and second moments.

        Within a step of c requests, uniform over L seconds, a gap has mean L / (c + 1) and second moment
        2 L^2 / ((c + 1) (c + 2)); between steps, two such ends and the idle time between them add up.
        """
        busy = np.flatnonzero(self.step_counts)
        counts = self.step_counts[busy].astype(np.float64)
        if counts.sum() < 2:
            return 0.0
        mean = STEP_FILLED_S / (counts + 1)
        second = 2 * STEP_FILLED_S**2 / ((counts + 1) * (counts + 2))
        variance = second - mean**2
        idle = np.diff(busy) * STEP_S - STEP_FILLED_S
        across_mean = mean[:-1] + idle + mean[1:]
        across_second = across_mean**2 + variance[:-1] + variance[1:]
        num_gaps = counts.sum() - 1
        total = float(((counts - 1) * mean).sum() + across_mean.sum()) / num_gaps
        total_second = float(((counts - 1) * second).sum() + across_second.sum()) / num_gaps
        return float(np.sqrt(max(total_second - total**2, 0.0)) / total)

    def params(self) -> tuple[float, int]:
        """Return (rate scale, minutes in the trace)."""
        return self.rate_scale, len(self.minute_counts)

    def generate_arrivals(self, start: float, duration: float, seed: int = 0) -> NDArray[np.float64]:
        """Return the arrivals of the steps from `start` on, before models take time to load, within `duration`."""
        check_real(start, "start (s)", minimum=0.0)
        check_real(duration, "duration (s)", minimum=0.0)
        random = legacy_random(seed)
        times = np.concatenate(
            [STEP_S * i + self._step_times(random, count) for i, count in enumerate(self.step_counts)]
        )
        return start + times[times < duration]

    @staticmethod
    def _step_times(random: np.random.RandomState, count: int) -> NDArray[np.float64]:
        return np.sort(random.uniform(0, STEP_FILLED_S, size=count))

    # AlpaServe's base class has one model name here; a trace drives a list of models
    def generate_workload(  # type: ignore[override]
        self,
        model_list: Sequence[Mapping[str, Any]],
        dataset: str | None = None,
        slo: float = 5,
        seed: int = 42,
        *,
        tokens: str | TokenPercentiles = "output_length",
    ) -> Workload:
        """Draw the workload of several models that are loaded one after the other.

        At step i the models with load_time i load, which moves all that follows by 90 s a model; each request then
        goes to one of the loaded models with equal chance.

        Parameters
        ----------
        model_list : sequence of mappings
            Each with ``id`` (requests name ``m{id}``), ``name``, ``load_time`` (a step) and ``output_length``
            (tokens), in the order of loading; optionally ``input_length`` (tokens; 0 if left out: a prompt too short
            to matter).
        dataset : str, optional
            Name of a Hugging Face data set (or of a folder with one) whose rows have ``conversations[0].text``, to
            take prompts from. Prompts do not influence a placement; by default there are none.
        slo : float
            Factor on TTFT + TPOT * output_length of each model.
        seed : int
            Equal seeds give equal workloads.
        tokens : {"output_length", "trace"} or TokenPercentiles
            Where input and output tokens of the requests come from; arrivals, models and SLOs do not depend on it.
            "output_length": from `model_list`, rounded to whole tokens (halves to the even one). "trace": both from
            one row, drawn with replacement among those of the same minute of the trace. Percentiles (such as
            :func:`~alpa_serve.trace.llm.token_percentiles` returns): both drawn, independent of each other.

        Raises
        ------
        InvalidConfigError, UnknownNameError
            If a model lacks a field or is not known, `tokens` is none of these, or the data set cannot be loaded.
        InvalidTraceError
            If tokens shall come from a trace whose token columns are missing or hold something else.
        """
        _check_token_source(tokens)
        check_real(slo, "slo (factor)", minimum=0.0, exclusive=True)
        models = [_checked_model(model, position) for position, model in enumerate(model_list)]
        ids = [model["id"] for model in models]
        if len(set(ids)) != len(ids):
            raise InvalidConfigError(f"the ids in model_list must differ, got {ids}")
        slos = np.array([model_slo(model["name"], model["output_length"], slo) for model in models])
        loads = [model["load_time"] for model in models]
        random = legacy_random(seed)
        loaded = 0
        arrivals, chosen, steps = [], [], []
        for step, count in enumerate(self.step_counts):
            loaded += loads.count(step)
            times = self._step_times(random, count)
            if loaded:
                arrivals.append(STEP_S * step + LOAD_S * loaded + times)
                chosen.append(random.choice(loaded, size=count))
                steps.append(step)
        model_ids = np.concatenate(chosen) if chosen else np.empty(0, dtype=np.int32)
        if isinstance(tokens, TokenPercentiles):
            input_tokens, output_tokens = tokens.draw(token_generator(seed), len(model_ids))
        elif tokens == "trace":
            if self._trace_tokens is None:
                raise InvalidTraceError("the trace has counts of requests only, no tokens to take")
            minutes = np.array(steps, dtype=np.int64) % len(self.minute_counts)
            minute_of_request = np.repeat(minutes, self.step_counts[steps] if steps else 0)
            input_tokens, output_tokens = self._trace_tokens.draw(token_generator(seed), minute_of_request)
        else:
            lengths = [(model.get("input_length", 0), model["output_length"]) for model in models]
            by_model = np.rint(np.array(lengths, dtype=np.float64).reshape(-1, 2)).astype(np.int64)
            input_tokens, output_tokens = by_model[model_ids].T
        return Workload.from_columns(
            np.concatenate(arrivals) if arrivals else [],
            model_ids,
            [f"m{model['id']}" for model in models],
            slos[model_ids],
            None if dataset is None else _prompts(dataset, seed, len(model_ids)),
            input_tokens=input_tokens,
            output_tokens=output_tokens,
        )


def _check_token_source(tokens: str | TokenPercentiles) -> None:
    if not isinstance(tokens, TokenPercentiles) and not (isinstance(tokens, str) and tokens in TOKEN_SOURCES):
        raise UnknownNameError(
            f"unknown tokens {tokens!r}; known: {', '.join(TOKEN_SOURCES)}, or a TokenPercentiles object "
            "(token_percentiles(name) of alpa_serve.trace.llm returns the shipped ones)"
        )


def _table_or_counts(trace: object) -> tuple[pd.DataFrame | None, Any]:
    """Return (the trace as a table, None) if it is one or has one, otherwise (None, its requests per minute)."""
    import pandas as pd

    # a table may have columns of any name, which look like methods
    if isinstance(trace, FrameTrace) and not isinstance(trace, pd.DataFrame):
        trace = trace.to_frame()
    if isinstance(trace, pd.DataFrame):
        return trace, None
    if isinstance(trace, CountedTrace):
        return None, trace.minute_counts()
    raise InvalidTraceError(
        "a trace is a pandas DataFrame with a TIMESTAMP column, or has to_frame() or minute_counts(), "
        f"got {type(trace).__name__}"
    )


def _checked_counts(given: Any, what: str = "requests per minute") -> NDArray[np.int64]:
    counts = np.asarray(given)
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or counts.min(initial=0) < 0:
        raise InvalidTraceError(f"{what} must be whole numbers >= 0, got {counts.dtype} of shape {counts.shape}")
    if not counts.any():
        raise InvalidTraceError("the trace has no request")
    if len(counts) > MAX_TRACE_MINUTES:
        raise InvalidTraceError(f"the trace spans {len(counts) / 1440:.0f} days; {MAX_TRACE_MINUTES // 1440} at most")
    return counts.astype(np.int64)


def _minutes(trace: pd.DataFrame) -> NDArray[np.int64]:
    """Return the minute to which each row of the trace counts, from 0 at the first."""
    import pandas as pd

    if "TIMESTAMP" not in trace.columns:
        raise InvalidTraceError(f"the trace has no column TIMESTAMP; it has {', '.join(map(str, trace.columns))}")
    if not len(trace):
        raise InvalidTraceError("the trace has no request")
    stamps = trace["TIMESTAMP"]
    if isinstance(stamps, pd.DataFrame):
        raise InvalidTraceError("the trace has more than one column TIMESTAMP")
    if not pd.api.types.is_datetime64_any_dtype(stamps):
        if pd.api.types.is_numeric_dtype(stamps):
            raise InvalidTraceError(f"TIMESTAMP must be dates, got numbers such as {stamps.iloc[0]!r}")
        dated = stamps.astype(str).str.match(DATE_START)
        stamps = pd.to_datetime(stamps, errors="coerce", format="ISO8601", utc=True).where(dated)
    bad = np.flatnonzero(stamps.isna().to_numpy())
    if len(bad):
        raise InvalidTraceError(
            f"row {bad[0]} of the trace: TIMESTAMP {trace['TIMESTAMP'].iloc[bad[0]]!r} is no date (ISO 8601)"
        )
    minutes = stamps.dt.round("min")
    offsets: NDArray[Any] = ((minutes - minutes.min()) // pd.Timedelta(minutes=1)).to_numpy()
    if offsets.max() > MAX_TRACE_MINUTES:
        raise InvalidTraceError(
            f"the trace spans {offsets.max() / 1440:.0f} days, from {minutes.min()} to {minutes.max()}; "
            f"at most {MAX_TRACE_MINUTES // 1440} are plausible"
        )
    return offsets


def _checked_model(model: Mapping[str, Any], position: int) -> Mapping[str, Any]:
    if not isinstance(model, Mapping):
        raise InvalidConfigError(f"entry {position} of model_list must be a dict, got {model!r}")
    missing = [key for key in ("id", "name", "load_time", "output_length") if key not in model]
    if missing:
        raise InvalidConfigError(f"entry {position} of model_list lacks {', '.join(missing)}: {dict(model)}")
    check_int(model["load_time"], f"load_time of entry {position} of model_list", minimum=0)
    for key, length in (("output_length", model["output_length"]), ("input_length", model.get("input_length", 0))):
        what = f"{key} of entry {position} of model_list"
        if check_real(length, what, minimum=0) > MAX_TOKENS:
            raise InvalidConfigError(f"{what} must be at most {MAX_TOKENS} tokens, got {length!r}")
    return model


def _prompts(dataset: str, seed: int, count: int) -> list[str]:
    """Return `count` prompts of a Hugging Face data set."""
    try:
        import datasets

        rows = datasets.load_dataset(dataset, split="train")
    except Exception as error:
        # the hub client fails in many ways: no such name, no network, a damaged cache
        raise UnknownNameError(
            f"cannot load the data set {dataset!r}: {error}. Prompts do not influence a placement: "
            "leave dataset out (None) to go on without them"
        ) from error
    try:
        texts = [row["conversations"][0]["text"] for row in rows]
    except (KeyError, IndexError, TypeError) as error:
        raise InvalidWorkloadError(
            f"the data set {dataset!r} has rows without conversations[0].text: {error!r}"
        ) from error
    if not texts:
        raise InvalidWorkloadError(f"the data set {dataset!r} has no rows")
    stdlib_random.Random(seed).shuffle(texts)
    return [
        texts[(n + PROMPT_OFFSET) % len(texts)].replace("\n", "CHANGELINE")[:PROMPT_CHARACTERS] for n in range(count)
    ]
