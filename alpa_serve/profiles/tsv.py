"""Readers of the two tab-separated files that Alpa's profilers write."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpa_serve.errors import InvalidProfileError
from alpa_serve.profiles.result import ParallelConfig, ProfilingResult
from alpa_serve.validation import check_int, check_real

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

MANUAL_COLUMNS = (
    "ModelName",
    "BS",
    "#Microbatch",
    "DP",
    "OP",
    "PP",
    "#GPU",
    "MeanTime(s)",
    "StdTime(s)",
    "TFLOPs",
    "StageWeights(B)",
    "StagePeakMem(B)",
    "StageLatencies(s)",
)
AUTO_COLUMNS = (
    "ModelName",
    "BS",
    "#Microbatch",
    "ParallelArgs",
    "MeanTime(s)",
    "StdTime(s)",
    "TFLOPs",
    "StageWeights(B)",
    "StagePeakMem(B)",
    "StageLatencies(s)",
    "Metadata",
    "TimeStamp",
)


@dataclass(frozen=True)
class ProfileRow:
    """One measurement: a model on a parallel config at a batch size; bytes and seconds per stage."""

    model_name: str
    config: ParallelConfig
    batch_size: int
    stage_latency: list[float]
    act_mem: list[float]
    weight_mem: list[float]
    metadata: Any = None

    def add_to(self, result: ProfilingResult) -> None:
        """Add this measurement to the profile `result` of its model."""
        result.add_result(
            self.config, self.batch_size, self.stage_latency, self.act_mem, self.weight_mem, self.metadata
        )


def read_manual(path: str | os.PathLike[str]) -> list[ProfileRow]:
    """Read a file of manual parallel configs (columns :data:`MANUAL_COLUMNS`; the header line may be missing).

    Raises
    ------
    InvalidProfileError
        Naming the file, the line and the column.
    """
    return _read(path, MANUAL_COLUMNS, _manual_row)


def read_auto(path: str | os.PathLike[str]) -> list[ProfileRow]:
    """Read a file of automatic parallel configs (no header; columns :data:`AUTO_COLUMNS`).

    The config is (1, second dimension of the first submesh, number of submeshes).

    Raises
    ------
    InvalidProfileError
        Naming the file, the line and the column.
    """
    return _read(path, AUTO_COLUMNS, _auto_row)


def _read(
    path: str | os.PathLike[str],
    columns: tuple[str, ...],
    parse: Callable[[dict[str, str], str], ProfileRow],
) -> list[ProfileRow]:
    rows: list[ProfileRow] = []
    for number, cells in _lines(path):
        where = f"{path}, line {number}"
        if cells == list(columns) and not rows:
            continue
        if len(cells) != len(columns):
            raise InvalidProfileError(
                f"{where}: expected {len(columns)} tab-separated columns ({', '.join(columns)}), found {len(cells)}"
            )
        row = parse(dict(zip(columns, cells, strict=True)), where)
        try:
            row.add_to(ProfilingResult(row.model_name))
        except InvalidProfileError as error:
            raise InvalidProfileError(f"{where}: {error}") from None
        rows.append(row)
    if not rows:
        raise InvalidProfileError(f"{path}: no measurement in this file")
    return rows


def _lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, list[str]]]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidProfileError(f"{path}: not a text file: {error}") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, [cell.strip() for cell in line.split("\t")]


def _manual_row(cells: dict[str, str], where: str) -> ProfileRow:
    config = ParallelConfig(_whole(cells, "DP", where), _whole(cells, "OP", where), _whole(cells, "PP", where))
    return _row(cells, where, config, None)


def _auto_row(cells: dict[str, str], where: str) -> ProfileRow:
    metadata = _literal(cells, "Metadata", where)
    try:
        shapes = [tuple(shape) for shape in metadata["submesh_shapes"]]
        config = ParallelConfig(1, shapes[0][1], len(shapes))
    except (TypeError, KeyError, IndexError):
        raise InvalidProfileError(
            f"{where}, column Metadata: needs submesh_shapes, a list of (hosts, devices), got {metadata!r}"
        ) from None
    return _row(cells, where, config, metadata)


def _row(cells: dict[str, str], where: str, config: ParallelConfig, metadata: Any) -> ProfileRow:
    weights = _figures(cells, "StageWeights(B)", where)
    peaks = _figures(cells, "StagePeakMem(B)", where)
    if len(weights) != len(peaks):
        raise InvalidProfileError(f"{where}: {len(weights)} stage weights but {len(peaks)} stage peak memories")
    return ProfileRow(
        model_name=cells["ModelName"],
        config=config,
        batch_size=_whole(cells, "BS", where),
        stage_latency=_figures(cells, "StageLatencies(s)", where),
        # the peak includes the weights; the two are measured apart, so noise can put the peak below
        act_mem=[max(peak - weight, 0.0) for peak, weight in zip(peaks, weights, strict=True)],
        weight_mem=weights,
        metadata=metadata,
    )


def _whole(cells: dict[str, str], column: str, where: str) -> int:
    try:
        value: object = int(cells[column])
    except ValueError:
        value = cells[column]
    return check_int(value, f"{where}, column {column}", minimum=1, error=InvalidProfileError)


def _figures(cells: dict[str, str], column: str, where: str) -> list[float]:
    listed = _literal(cells, column, where)
    where = f"{where}, column {column}"
    if not isinstance(listed, (list, tuple)):
        raise InvalidProfileError(f"{where}: expected [a,b,...], one figure per stage, got {cells[column]!r}")
    return [check_real(figure, where, minimum=0.0, error=InvalidProfileError) for figure in listed]


def _literal(cells: dict[str, str], column: str, where: str) -> Any:
    try:
        return ast.literal_eval(cells[column])
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise InvalidProfileError(f"{where}, column {column}: not a Python literal: {cells[column]!r}") from None
