"""Deciding how many models share a GPU cluster: simulation, placement search, profiles and traces.

The modules keep the places they have in AlpaServe (OSDI'23): ``alpa_serve.profiling``, ``alpa_serve.simulator``,
``alpa_serve.placement_policy``. Importing this package alone loads nothing heavy.
"""

__version__ = "0.1.0"
