"""The errors that the package raises on purpose, in one hierarchy.

Each message names the offending value, where it came from (model, file, line) and what would be right.
"""

from collections.abc import Callable
from functools import partial
from typing import Any


class AlpaServeError(Exception):
    """Base of every error that alpa_serve raises on purpose."""


class InvalidConfigError(AlpaServeError, ValueError):
    """A setting (cluster, model data, policy argument) is out of its range."""


class UnknownNameError(AlpaServeError, ValueError):
    """A model, trace, model set or dataset is not known; the message lists the ones that are."""


class InvalidProfileError(AlpaServeError, ValueError):
    """A profile or profile file is malformed or lacks the figure that was asked for."""


class InvalidTraceError(AlpaServeError, ValueError):
    """A trace file or table cannot be read; the message names file, line and column."""


class InvalidWorkloadError(AlpaServeError, ValueError):
    """Arrivals, requests or statistics arguments contradict each other or are out of range."""


class InvalidPlacementError(AlpaServeError, ValueError):
    """A placement does not describe the models and the cluster that it is used with."""


class InfeasiblePlacementError(AlpaServeError, RuntimeError):
    """No placement meets the constraints; the message says which constraint to relax, and to what."""


class SolverStoppedError(InfeasiblePlacementError):
    """No placement was found in the time given, which does not prove that there is none."""


class WorkerError(AlpaServeError, RuntimeError):
    """Processes that a search should run on cannot be started or reached, or die over and over."""


class ServingError(AlpaServeError, RuntimeError):
    """A request to a running service has no answer; its subclasses say why."""


class InvalidRequestError(ServingError, ValueError):
    """A request is not what the endpoint, or the model, takes (HTTP 400). Models may raise it."""


class ModelNotFoundError(ServingError):
    """No model of this name is registered (HTTP 404)."""


class RequestRejectedError(ServingError):
    """A request was not admitted because it cannot meet its SLO."""


class OverloadedError(ServingError):
    """As many requests wait as may wait, or none is taken now; later there may be room (HTTP 503)."""


class GroupLostError(ServingError):
    """The groups that a request was given to died, or none that holds its model came up in time (HTTP 503)."""


class RequestTimeoutError(ServingError):
    """A model took longer than a request may take (HTTP 504)."""


class ModelFailedError(ServingError):
    """The code of a model raised an error (HTTP 500), or the server that it stands for did."""


class SearchInterrupted(KeyboardInterrupt):
    """A search was stopped from the keyboard; the best it had is attached.

    Parameters
    ----------
    placement : ModelPlacement or None
        The best placement so far; None if there was none yet.
    evaluation : Evaluation or None
        What it attains.
    """

    def __init__(self, *, placement: Any = None, evaluation: Any = None) -> None:
        super().__init__("the search was stopped" + ("; no placement was found yet" if placement is None else ""))
        self.placement = placement
        self.evaluation = evaluation

    def __reduce__(self) -> tuple[Callable[[], "SearchInterrupted"], tuple[()]]:
        # exceptions are copied and sent to other processes by their positional arguments, of which this has none
        return partial(type(self), **vars(self)), ()


class PlanInterrupted(SearchInterrupted):
    """A planner was stopped from the keyboard; the best plan so far is attached.

    Parameters
    ----------
    plan : CapacityPlan, ScalePlan or None
        What is known to reach the target; None if nothing did yet.
    placement, evaluation
        The placement of the plan, or without a plan the best one so far, and what it attains.
    """

    def __init__(self, *, plan: Any = None, placement: Any = None, evaluation: Any = None) -> None:
        super().__init__(placement=placement, evaluation=evaluation)
        self.plan = plan


class ReplayInterrupted(KeyboardInterrupt):
    """A replay was stopped from the keyboard; what became of the requests so far is attached.

    Parameters
    ----------
    result : ReplayResult or None
        Requests that were not sent yet are marked so; those that waited for their answer count as unanswered.
    """

    def __init__(self, *, result: Any = None) -> None:
        super().__init__("the replay was stopped")
        self.result = result

    def __reduce__(self) -> tuple[Callable[[], "ReplayInterrupted"], tuple[()]]:
        return partial(type(self), **vars(self)), ()
