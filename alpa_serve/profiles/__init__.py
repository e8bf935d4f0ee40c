"""What models cost: the profile classes, the shipped figure tables and one reader per source of profiles."""

from alpa_serve.profiles.csv_form import read_csv, write_csv
from alpa_serve.profiles.loading import load, sources
from alpa_serve.profiles.plausibility import Finding, validate

__all__ = ["Finding", "load", "read_csv", "sources", "validate", "write_csv"]
