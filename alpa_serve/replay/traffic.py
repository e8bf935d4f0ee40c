"""The workload of a replay: what words on the command line say of requests, SLOs and profiles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.errors import InvalidConfigError, InvalidProfileError, InvalidWorkloadError
from alpa_serve.simulator.workload import DeterministicProcess, GammaProcess, PoissonProcess, Workload
from alpa_serve.trace.llm import POISSON, load_llm_trace
from alpa_serve.validation import check_int, check_known, check_real

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from alpa_serve.profiles.result import ProfilingResult
    from alpa_serve.simulator.arrivals import ArrivalProcess

_PROCESSES: dict[str, tuple[Callable[..., ArrivalProcess], tuple[str, ...]]] = {
    "gamma": (GammaProcess, ("rate", "cv")),
    "poisson": (PoissonProcess, ("rate",)),
    "uniform": (DeterministicProcess, ("rate",)),
}


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """When requests come, and for which models.

    Attributes
    ----------
    trace : str
        What :func:`~alpa_serve.trace.llm.load_llm_trace` takes, or a random process that each model has of its own:
        ``gamma:rate=2,cv=4``, ``poisson:rate=2`` or ``uniform:rate=2`` (equal gaps), rates in requests per second.
    duration : float or None
        Seconds, of a process only.
    start, end : str or None
        Part of a trace: seconds on its axis, or dates.
    head : int or None
        Requests to keep, the first ones.
    assign : str
        How requests of a trace find their models, as :meth:`~alpa_serve.trace.llm.LLMTrace.to_workload` takes it.
    weights : mapping of str to float or None
        By model, for assign "weights".
    rate_scale : float
        Factor on the number of requests.
    time_scale : float
        Factor on the time that they take to come.
    seed : int
        Equal seeds give equal requests.
    """

    trace: str
    duration: float | None = None
    start: str | None = None
    end: str | None = None
    head: int | None = None
    assign: str = "uniform"
    weights: Mapping[str, float] | None = None
    rate_scale: float = 1.0
    time_scale: float = 1.0
    seed: int = 0

    def workload(self, slos: Mapping[str, float]) -> Workload:
        """Return the requests; the first of a trace comes at second 0.

        Parameters
        ----------
        slos : mapping of str to float
            The models, and their SLOs in seconds; infinity for none.

        Raises
        ------
        AlpaServeError
            If something is out of range, contradicts something else or cannot be read, or there is no request.
        """
        check_int(self.seed, "seed", minimum=0)
        check_real(self.rate_scale, "rate scale", minimum=0.0, exclusive=True)
        check_real(self.time_scale, "time scale", minimum=0.0, exclusive=True)
        process = _process(self.trace, self.rate_scale)
        requests = self._of_trace(slos) if process is None else self._of_process(process, slos)
        if not len(requests):
            raise InvalidWorkloadError(f"no request is left of {self.trace}")
        begin = requests.arrivals[0] if process is None else 0.0
        return Workload.from_columns(
            (requests.arrivals - begin) * self.time_scale,
            requests.model_ids,
            requests.model_names,
            requests.slos,
            input_tokens=requests.input_tokens,
            output_tokens=requests.output_tokens,
        )

    def _of_process(self, process: ArrivalProcess, slos: Mapping[str, float]) -> Workload:
        for name in ("start", "end", "weights"):
            if getattr(self, name) is not None:
                raise InvalidConfigError(f"{name} goes with a trace; each model has the process {self.trace}")
        if self.assign != "uniform":
            raise InvalidConfigError(
                f"assign ({self.assign}) goes with a trace; each model has the process {self.trace}"
            )
        if self.duration is None:
            raise InvalidConfigError(f"the process {self.trace} needs a duration in seconds")
        drawn = Workload.merge(
            *(
                process.generate_workload(name, 0, self.duration, slo, seed=self.seed + position)
                for position, (name, slo) in enumerate(slos.items())
            )
        )
        return drawn if self.head is None else drawn[: check_int(self.head, "head", minimum=1)]

    def _of_trace(self, slos: Mapping[str, float]) -> Workload:
        if self.duration is not None:
            raise InvalidConfigError(f"duration goes with a process; give start, end or head of the trace {self.trace}")
        trace = load_llm_trace(self.trace, start=_moment(self.start), end=_moment(self.end), seed=self.seed)
        if self.rate_scale != 1:
            trace = trace.scale_rate(self.rate_scale, self.seed)
        if self.head is not None:
            trace = trace.head(check_int(self.head, "head", minimum=1))
        return trace.to_workload(list(slos), self.assign, slo=dict(slos), weights=self.weights, seed=self.seed)


def _process(text: str, rate_scale: float) -> ArrivalProcess | None:
    """Return the process that a text describes; None if it names a trace."""
    kind, colon, given = text.partition(":")
    # the trace of this name is another thing
    if kind not in _PROCESSES or Path(text).exists() or (kind == POISSON and not colon):
        return None
    make, wanted = _PROCESSES[kind]
    figures = named_numbers(given.split(",") if given else [], f"{kind} process")
    if set(figures) != set(wanted):
        example = ",".join(f"{name}=2" for name in wanted)
        raise InvalidConfigError(f"a {kind} process is spelled {kind}:{example}, got {text!r}")
    figures["rate"] *= rate_scale
    return make(*(figures[name] for name in wanted))


def _moment(text: str | None) -> float | str | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def named_numbers(texts: Sequence[str], what: str) -> dict[str, float]:
    """Return the numbers of texts such as ``name=1.5``, by name.

    Raises
    ------
    InvalidConfigError
        If one is something else, or a name comes twice.
    """
    numbers: dict[str, float] = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            number = np.nan
        if not name or np.isnan(number):
            raise InvalidConfigError(f"{what}: NAME=NUMBER is wanted, got {text!r}")
        if name in numbers:
            raise InvalidConfigError(f"{what}: {name} is given twice")
        numbers[name] = number
    return numbers


def model_slos(
    names: Sequence[str],
    given: Sequence[str] = (),
    scale: float | None = None,
    profiles: Mapping[str, ProfilingResult] | None = None,
) -> dict[str, float]:
    """Return the SLO of each model in seconds, infinity for none.

    Parameters
    ----------
    names : sequence of str
        The models.
    given : sequence of str
        ``NAME=SECONDS``, or ``SECONDS`` for the models that are not named.
    scale : float, optional
        Factor on what a request takes that has a replica on the fewest devices for itself, for the models that are not
        named; they must have profiles.
    profiles : mapping of str to ProfilingResult, optional

    Raises
    ------
    InvalidConfigError, UnknownNameError
        If a figure is out of range, a model is not known or has no profile, or there are two figures for one.
    """
    general = [text for text in given if "=" not in text]
    of_model = named_numbers([text for text in given if "=" in text], "SLO")
    for name in of_model:
        check_known(name, names, "model")
    if len(general) + (scale is not None) > 1:
        raise InvalidConfigError("one SLO for all models is wanted, or one SLO scale; got more than one of these")
    for text in general:
        of_model = dict.fromkeys(names, named_numbers([f"all={text}"], "SLO")["all"]) | of_model
    if scale is not None:
        check_real(scale, "SLO scale", minimum=0.0, exclusive=True)
        for name in names:
            if name not in of_model:
                if name not in (profiles or {}):
                    raise InvalidConfigError(f"an SLO scale needs a profile of model {name!r}, or an SLO of its own")
                of_model[name] = scale * latency_alone((profiles or {})[name])
    return {
        name: check_real(of_model.get(name, np.inf), f"SLO (s) of {name}", minimum=0.0, finite=False) for name in names
    }


def latency_alone(profile: ProfilingResult) -> float:
    """Return the seconds of a single request on the profiled config of the fewest devices, the fastest of these.

    Raises
    ------
    InvalidProfileError
        If the profile has no figure for single requests.
    """
    known = [
        (config.num_devices, sum(data.latency[1])) for config, data in profile.para_dict.items() if 1 in data.latency
    ]
    if not known:
        raise InvalidProfileError(f"the profile of {profile.model_name!r} has no latency at batch size 1")
    return float(min(known)[1])
