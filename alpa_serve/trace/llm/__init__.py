"""Traces of LLM requests: built in, or read from the files in which the field publishes them."""

from alpa_serve.trace.llm.built_in import (
    BUILT_IN_TRACES,
    POISSON,
    POISSON_DURATION_S,
    minute_counts,
    token_percentiles,
)
from alpa_serve.trace.llm.formats import FORMATS
from alpa_serve.trace.llm.loading import load_azure_llm_trace, load_llm_trace
from alpa_serve.trace.llm.summary import TraceSummary
from alpa_serve.trace.llm.trace import LLMTrace

__all__ = [
    "BUILT_IN_TRACES",
    "FORMATS",
    "POISSON",
    "POISSON_DURATION_S",
    "LLMTrace",
    "TraceSummary",
    "load_azure_llm_trace",
    "load_llm_trace",
    "minute_counts",
    "token_percentiles",
]
