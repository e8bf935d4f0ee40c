"""How a cluster serves: the rules, and the one code that dispatches, admits and times requests by them.

The compiled and the event-driven simulator and the runtime stand on this package; nothing here reads a clock, the
time is passed in.
"""

from alpa_serve.scheduling.rules import ALPASERVE, MAVERIQ, RUNTIME, ServingRules, check_rules
from alpa_serve.scheduling.scheduler import Assignment, Scheduler
from alpa_serve.scheduling.timing import ReplicaTiming, replica_timing

__all__ = [
    "ALPASERVE",
    "MAVERIQ",
    "RUNTIME",
    "Assignment",
    "ReplicaTiming",
    "Scheduler",
    "ServingRules",
    "check_rules",
    "replica_timing",
]
