"""Traces of Azure Functions: their public files, AlpaServe's pickles, and replays of them as requests for models."""
