"""Replaying a workload against a running server: open-loop load over HTTP, measured as the simulator measures.

The command is ``python -m alpa_serve.replay PLACEMENT TRACE --url URL``, the function :func:`replay_workload`.
"""

from alpa_serve.replay.endpoint import Endpoint
from alpa_serve.replay.results import Lateness, ReplayProgress, ReplayResult, Status
from alpa_serve.replay.workers import replay_workload

__all__ = ["Endpoint", "Lateness", "ReplayProgress", "ReplayResult", "Status", "replay_workload"]
