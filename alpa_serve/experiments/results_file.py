"""The CSV file to which every deployment strategy adds a row."""

from __future__ import annotations

import csv
import os
from typing import TYPE_CHECKING

from alpa_serve.errors import InvalidConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

COLUMNS = (
    "baseline",
    "models",
    "trace",
    "scale_rate",
    "slo",
    "num_devices",
    "mem_budget_gib",
    "num_devices_per_node",
    "published_naming",
    "rules",
    "num_requests",
    "slo_attainment",
    "latency_mean_s",
    "placement",
)


def check_results_file(path: Path) -> bool:
    """Tell whether the file is to be started.

    Raises
    ------
    InvalidConfigError
        If it cannot be written, or holds something else.
    """
    if not path.parent.is_dir():
        raise InvalidConfigError(f"--output: there is no folder {path.parent}")
    if path.exists() and not path.is_file():
        raise InvalidConfigError(f"--output: {path} is not a file")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InvalidConfigError(f"--output: {path} cannot be written")
    if not path.exists() or path.stat().st_size == 0:
        return True
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        header = next(csv.reader(file))
    if tuple(header) != COLUMNS:
        raise InvalidConfigError(f"{path} has other columns ({', '.join(header)}); take another --output")
    return False


def append_result(path: Path, row: Mapping[str, object]) -> None:
    """Append a result, a value for each of `COLUMNS`; a new file gets the header line first.

    Raises
    ------
    InvalidConfigError
        If the file cannot be written, or holds something else.
    """
    start = check_results_file(path)
    cut_short = not start and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8", newline="") as file:
        if cut_short:
            file.write("\n")
        writer = csv.DictWriter(file, COLUMNS)
        if start:
            writer.writeheader()
        writer.writerow(row)
