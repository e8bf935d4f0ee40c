"""Profiles under the names that AlpaServe gives them.

The classes and readers live in :mod:`alpa_serve.profiles`, one subject a file.
"""

from alpa_serve.profiles.database import ProfilingDatabase
from alpa_serve.profiles.maveriq import load_test_prof_result_v2
from alpa_serve.profiles.prefill_decode import PrefillDecode
from alpa_serve.profiles.result import LatencyMemData, ParallelConfig, ProfilingResult
from alpa_serve.profiles.synthetic import load_test_prof_result

__all__ = [
    "LatencyMemData",
    "ParallelConfig",
    "PrefillDecode",
    "ProfilingDatabase",
    "ProfilingResult",
    "load_test_prof_result",
    "load_test_prof_result_v2",
]
