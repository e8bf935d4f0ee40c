"""Recorded request traces: LLM requests (:mod:`~alpa_serve.trace.llm`) and invocations of Azure Functions."""

from alpa_serve.trace.functions.cache import load_trace
from alpa_serve.trace.functions.raw_files import preprocess_azure_v1_trace, preprocess_azure_v2_trace
from alpa_serve.trace.functions.replay import TraceReplay, report_group_stats
from alpa_serve.trace.functions.trace import Trace

__all__ = [
    "Trace",
    "TraceReplay",
    "load_trace",
    "preprocess_azure_v1_trace",
    "preprocess_azure_v2_trace",
    "report_group_stats",
]
