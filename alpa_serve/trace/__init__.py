"""Recorded request traces: the built-in ones and readers of public trace files."""
