"""Recorded request traces: LLM requests (:mod:`~alpa_serve.trace.llm`) and invocations of Azure Functions."""

from alpa_serve.trace.azure_functions import preprocess_azure_v1_trace, preprocess_azure_v2_trace
from alpa_serve.trace.function_cache import load_trace
from alpa_serve.trace.function_trace import Trace
from alpa_serve.trace.replay import TraceReplay, report_group_stats

__all__ = [
    "Trace",
    "TraceReplay",
    "load_trace",
    "preprocess_azure_v1_trace",
    "preprocess_azure_v2_trace",
    "report_group_stats",
]
