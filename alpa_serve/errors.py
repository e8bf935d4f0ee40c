"""The errors that the package raises on purpose, in one hierarchy.

Each message names the offending value, where it came from (model, file, line) and what would be right.
"""


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
