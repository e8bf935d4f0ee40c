"""Metrics of the requests that a runtime serves, in Prometheus' words."""

from __future__ import annotations

import math
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from alpa_serve.errors import (
    GroupLostError,
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
    RequestRejectedError,
    RequestTimeoutError,
)

Outcome = Literal[
    "answered", "rejected", "failed", "overloaded", "timeout", "not_found", "invalid", "lost", "cancelled"
]

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
"""Of Prometheus' text format."""

BUCKETS_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper bounds of the histograms' buckets, in seconds: from an empty model to a long answer."""

UNKNOWN = ""
"""The label of a model that is not registered: what clients send must not add series without end."""

_OUTCOMES: tuple[tuple[type[Exception], Outcome], ...] = (
    (RequestRejectedError, "rejected"),
    (ModelNotFoundError, "not_found"),
    (InvalidRequestError, "invalid"),
    (OverloadedError, "overloaded"),
    (GroupLostError, "lost"),
    (RequestTimeoutError, "timeout"),
)


def outcome_of(error: BaseException | None) -> Outcome:
    """Return what became of a request that ended with `error`; None is an answer."""
    if error is None:
        return "answered"
    outcomes = (outcome for kind, outcome in _OUTCOMES if isinstance(error, kind))
    return next(outcomes, "failed" if isinstance(error, Exception) else "cancelled")


class ServingMetrics:
    """Counts requests by model, group and outcome, in a registry of its own.

    Models are labelled by name after :meth:`add_model`, all others by :data:`UNKNOWN`.
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        placed = ["model", "group"]
        self._requests = Counter("alpa_serve_requests", "Requests by outcome.", [*placed, "outcome"], registry=registry)
        self._slo_requests = Counter("alpa_serve_slo_requests", "Requests with an SLO.", ["model"], registry=registry)
        self._slo_attained = Counter(
            "alpa_serve_slo_attained", "Requests answered within their SLO.", ["model"], registry=registry
        )
        self._latency = Histogram(
            "alpa_serve_latency_seconds",
            "From sending to answer, of answered requests.",
            placed,
            registry=registry,
            buckets=BUCKETS_S,
        )
        self._queue = Histogram(
            "alpa_serve_queue_seconds",
            "Waiting in the group, of answered requests.",
            placed,
            registry=registry,
            buckets=BUCKETS_S,
        )
        self._first_token = Histogram(
            "alpa_serve_time_to_first_token_seconds",
            "From sending to the first piece of a streamed answer.",
            ["model"],
            registry=registry,
            buckets=BUCKETS_S,
        )
        self._in_flight = Gauge(
            "alpa_serve_in_flight", "Requests that a group has, running or waiting.", placed, registry=registry
        )
        self._restarts = Gauge(
            "alpa_serve_group_restarts", "Restarts of a group after its death.", ["group"], registry=registry
        )
        self._errors = Counter(
            "alpa_serve_http_errors", "Answers over HTTP of status 400 and more.", ["status"], registry=registry
        )
        self._models: set[str] = set()
        # labels() checks and locks at each call; requests take the children from here
        self._outcome_children: dict[tuple[str, str, str], Counter] = {}
        self._slo_children: dict[str, tuple[Counter, Counter]] = {}
        self._duration_children: dict[tuple[str, str], tuple[Histogram, Histogram]] = {}

    def add_model(self, model: str) -> None:
        """Label requests for `model` by its name from now on."""
        self._models.add(model)

    def observe(
        self,
        model: str,
        group: str,
        outcome: Outcome,
        latency_s: float = 0.0,
        queue_s: float = 0.0,
        slo_s: float = math.inf,
    ) -> None:
        """Count a request that is done with.

        Parameters
        ----------
        model : str
        group : str
            Id of the group that had it; "" if none had.
        outcome : str
        latency_s : float
            Seconds from its sending to its answer; only read of answered requests, as `queue_s`.
        queue_s : float
            Seconds of it that it waited in its group.
        slo_s : float
            Seconds within which the answer was wanted; infinity for a request without SLO.
        """
        if model not in self._models:
            model = UNKNOWN
        outcome_key = (model, group, outcome)
        counter = self._outcome_children.get(outcome_key)
        if counter is None:
            counter = self._outcome_children[outcome_key] = self._requests.labels(*outcome_key)
        counter.inc()
        answered = outcome == "answered"
        if answered:
            key = (model, group)
            durations = self._duration_children.get(key)
            if durations is None:
                durations = self._duration_children[key] = (self._latency.labels(*key), self._queue.labels(*key))
            durations[0].observe(latency_s)
            durations[1].observe(queue_s)
        if slo_s < math.inf:
            slo = self._slo_children.get(model)
            if slo is None:
                slo = self._slo_children[model] = (self._slo_requests.labels(model), self._slo_attained.labels(model))
            slo[0].inc()
            if answered and latency_s <= slo_s:
                slo[1].inc()

    def observe_first_token(self, model: str, seconds: float) -> None:
        """Note the time from the sending of a request to the first piece of its streamed answer."""
        self._first_token.labels(model if model in self._models else UNKNOWN).observe(seconds)

    def set_in_flight(self, model: str, group: str, number: int) -> None:
        """Note how many requests for a model a group has."""
        self._in_flight.labels(model if model in self._models else UNKNOWN, group).set(number)

    def set_group_restarts(self, group: str, number: int) -> None:
        """Note how often a group was started again after its death."""
        self._restarts.labels(group).set(number)

    def count_error(self, status: int) -> None:
        """Count an answer of this HTTP status, whether a model saw the request or not."""
        self._errors.labels(str(status)).inc()

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)
