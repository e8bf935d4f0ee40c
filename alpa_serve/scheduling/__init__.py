"""How a cluster serves: the rules, and the one code that dispatches, admits and times requests by them.

The compiled and the event-driven simulator stand on this package, and the runtime will; nothing here reads a clock, the
time is passed in.
"""

from alpa_serve.scheduling.rules import ALPASERVE, MAVERIQ, ServingRules, check_rules
from alpa_serve.scheduling.scheduler import Assignment, Scheduler
from alpa_serve.scheduling.timing import ReplicaTiming, replica_timing

__all__ = [
    "ALPASERVE",
    "MAVERIQ",
    "Assignment",
    "ReplicaTiming",
    "Scheduler",
    "ServingRules",
    "check_rules",
    "replica_timing",
]
