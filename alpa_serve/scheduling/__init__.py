"""How a cluster serves: the rules, and the one code that dispatches, admits and times requests by them.

The compiled simulator, the event-driven simulator and the runtime all stand on this package; nothing here reads a
clock, the time is passed in.
"""

from alpa_serve.scheduling.rules import ALPASERVE, MAVERIQ, ServingRules
from alpa_serve.scheduling.scheduler import Assignment, Scheduler
from alpa_serve.scheduling.timing import ReplicaTiming, replica_timing

__all__ = ["ALPASERVE", "MAVERIQ", "Assignment", "ReplicaTiming", "Scheduler", "ServingRules", "replica_timing"]
