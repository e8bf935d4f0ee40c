"""One way to any profile: :func:`load` finds it by the model's name and what else is said of where it is."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpa_serve.errors import InvalidConfigError, InvalidProfileError, UnknownNameError
from alpa_serve.profiles import aiconfigurator, csv_form, maveriq, maveriq_raw, synthetic, tsv
from alpa_serve.profiles.database import ProfilingDatabase
from alpa_serve.validation import check_known

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from alpa_serve.profiles.result import ProfilingResult

    PathLike = str | os.PathLike[str]

_FIRST_BYTES = 4096
_PICKLE_SUFFIXES = (".pkl", ".pickle")


@dataclass(frozen=True)
class _Source:
    """Where profiles come from: what it is, and its loader, whose keywords are those of :func:`load`."""

    summary: str
    loader: Callable[..., ProfilingResult]

    @property
    def keywords(self) -> dict[str, bool]:
        """Keyword -> whether it must be given."""
        parameters = list(inspect.signature(self.loader).parameters.values())[1:]
        return {parameter.name: parameter.default is inspect.Parameter.empty for parameter in parameters}


def load(name: str | os.PathLike[str], source: str | None = None, **where: Any) -> ProfilingResult:
    """Return the profile of a model from any source.

    Parameters
    ----------
    name : str
        The model, as its source names it; for "aiconfigurator" also a folder with a config.json.
    source : str or None
        One of :func:`sources`. None tells it from the rest: ``path`` from what is in the file, ``system`` means
        "aiconfigurator", otherwise the name is one of "maveriq" or "test".
    **where
        What the source wants to know more:

        - "maveriq": dtype, int8_kv_cache (:func:`alpa_serve.profiles.maveriq.load`); "maveriq-published" and "test":
          nothing.
        - "database" (AlpaServe's pickle), "tsv", "auto-tsv" (Alpa's profilers): path.
        - "csv" (:mod:`alpa_serve.profiles.csv_form`): path, and origin, hardware, dtype where the file has several
          profiles of the model (origin is its column source).
        - "maveriq-raw": path, and the arguments of :func:`alpa_serve.profiles.maveriq_raw.load`.
        - "aiconfigurator": system and the other arguments of :func:`alpa_serve.profiles.aiconfigurator.load`.

    Raises
    ------
    UnknownNameError
        Listing the sources, or the models that the source has.
    InvalidConfigError
        If an argument is one that the source does not have, lacks or finds out of range.
    InvalidProfileError
        Naming the file, line and column of what is malformed.
    FileNotFoundError
        If there is no such file.
    """
    if source is None:
        source = _source_of(name, where)
    chosen = _SOURCES[check_known(source, _SOURCES, "source of profiles")]
    keywords = chosen.keywords
    for keyword in where:
        if keyword not in keywords:
            allowed = ", ".join(keywords) or "none"
            raise InvalidConfigError(
                f"profiles of source {source!r} take no argument {keyword!r}; they take: {allowed}"
            )
    missing = [keyword for keyword, needed in keywords.items() if needed and keyword not in where]
    if missing:
        raise InvalidConfigError(f"profiles of source {source!r} need the argument {', '.join(missing)}")
    return chosen.loader(name, **where)


def sources() -> dict[str, str]:
    """Return the names of the sources that :func:`load` knows, each with what it is."""
    return {name: source.summary for name, source in _SOURCES.items()}


def _source_of(name: PathLike, where: dict[str, Any]) -> str:
    if "path" in where:
        return _form_of(where["path"])
    if "system" in where:
        return "aiconfigurator"
    if name in maveriq.model_names():
        return "maveriq"
    if name in synthetic.PROFILES:
        return "test"
    raise UnknownNameError(_unknown_message(str(name)))


def _unknown_message(name: str) -> str:
    shipped = {"maveriq": maveriq.model_names(), "test": list(synthetic.PROFILES)}
    try:
        offline = aiconfigurator.model_names()
    except InvalidConfigError:
        offline = []
    close = get_close_matches(name, [*shipped["maveriq"], *shipped["test"], *offline], cutoff=0.5)
    listed = "; ".join(f"source {source!r}: {', '.join(names)}" for source, names in shipped.items())
    hint = f", did you mean {close[0]!r}?" if close else ""
    extra = f"{len(offline)} models" if offline else f"not installed, {aiconfigurator.INSTALL}"
    return (
        f"unknown model {name!r}{hint}; known: {listed}; "
        f"source 'aiconfigurator' ({extra}) needs system=, as in system='h100_sxm'; a file needs path=; all sources: "
        f"{', '.join(_SOURCES)}"
    )


def _form_of(path: PathLike) -> str:
    """Tell the source of a file from what is in it."""
    with Path(path).open("rb") as file:
        first = file.read(_FIRST_BYTES)
    if first.startswith(b"\x80") or Path(path).suffix.lower() in _PICKLE_SUFFIXES:
        return "database"
    line = first.decode("utf-8-sig", "replace").lstrip().partition("\n")[0]
    for source, width in (("tsv", len(tsv.MANUAL_COLUMNS)), ("auto-tsv", len(tsv.AUTO_COLUMNS))):
        if line.count("\t") == width - 1:
            return source
    header = {cell.strip().strip('"') for cell in line.split(",")}
    if len(header & set(csv_form.REQUIRED_COLUMNS)) > 1:
        return "csv"
    if len(header & set(maveriq_raw.COLUMNS)) > 1:
        return "maveriq-raw"
    raise InvalidProfileError(
        f"{path}, line 1: cannot tell the form of this file; give source= as one of database, tsv, auto-tsv, csv, "
        f"maveriq-raw"
    )


def _maveriq(name: str, *, dtype: str = "float16", int8_kv_cache: bool = False) -> ProfilingResult:
    return maveriq.load(name, dtype, int8_kv_cache)


def _from_database(name: str, database: ProfilingDatabase, source: str) -> ProfilingResult:
    result = database.results[check_known(name, database.results, f"model of {database.database_filename}")]
    result.source = result.source or source
    return result


def _database(name: str, *, path: PathLike) -> ProfilingResult:
    return _from_database(name, ProfilingDatabase(path), f"profile database {path}")


def _tsv(name: str, *, path: PathLike) -> ProfilingResult:
    database = ProfilingDatabase(path, new_database=True)
    database.update_from_csv(path)
    return _from_database(name, database, f"Alpa's measurements, {path}")


def _auto_tsv(name: str, *, path: PathLike) -> ProfilingResult:
    database = ProfilingDatabase(path, new_database=True)
    database.update_from_auto_csv(path)
    return _from_database(name, database, f"Alpa's measurements, {path}")


def _csv(
    name: str, *, path: PathLike, origin: str | None = None, hardware: str | None = None, dtype: str | None = None
) -> ProfilingResult:
    results = csv_form.read_csv(path)
    check_known(name, dict.fromkeys(result.model_name for result in results), f"model of {path}")
    of_model = [result for result in results if result.model_name == name]
    wanted = {"source": origin, "hardware": hardware, "dtype": dtype}
    fitting = [
        result
        for result in of_model
        if all(text is None or getattr(result, field) == text for field, text in wanted.items())
    ]
    if len(fitting) != 1:
        there = "; ".join(f"origin={r.source!r}, hardware={r.hardware!r}, dtype={r.dtype!r}" for r in of_model)
        raise InvalidConfigError(f"{path}: {len(fitting)} profiles of {name!r} fit; there are: {there}")
    return fitting[0]


def _maveriq_raw(
    name: str,
    *,
    path: PathLike,
    dtype: str = "float16",
    int8_kv_cache: bool = False,
    output_tokens: int = maveriq.OUTPUT_TOKENS,
    prompt_tokens: int | None = None,
    hardware: str = "",
) -> ProfilingResult:
    return maveriq_raw.load(
        path,
        name,
        dtype,
        int8_kv_cache,
        output_tokens=output_tokens,
        prompt_tokens=prompt_tokens,
        hardware=hardware,
    )


_SOURCES = {
    "maveriq": _Source("MaverIQ's measurements of six LLMs on RTX A6000, shipped", _maveriq),
    "maveriq-published": _Source(
        "the same as the published AlpaServe experiments used them", maveriq.load_test_prof_result_v2
    ),
    "test": _Source("AlpaServe's four test profiles, shipped", synthetic.load_test_prof_result),
    "database": _Source("a pickle file of AlpaServe's ProfilingDatabase", _database),
    "tsv": _Source("Alpa's measurements of manual configs, tab-separated", _tsv),
    "auto-tsv": _Source("Alpa's measurements of automatic configs, tab-separated", _auto_tsv),
    "csv": _Source("a CSV file in the form of alpa_serve.profiles.csv_form", _csv),
    "maveriq-raw": _Source("a CSV file of MaverIQ's profiler", _maveriq_raw),
    "aiconfigurator": _Source("kernel measurements of NVIDIA's aiconfigurator-core (extra)", aiconfigurator.load),
}
