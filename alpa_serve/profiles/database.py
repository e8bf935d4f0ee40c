"""Profiles by model name, kept in a file of AlpaServe's pickle form."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING

from alpa_serve.files import replacing
from alpa_serve.profiles import tsv
from alpa_serve.profiles.pickles import read_profiles
from alpa_serve.profiles.result import ProfilingResult

if TYPE_CHECKING:
    import os


class ProfilingDatabase:
    """Profiles by model name, kept in a pickle file that AlpaServe can read and write too.

    Parameters
    ----------
    database_filename : path-like
        The file; used exactly as given.
    new_database : bool
        Start empty instead of reading the file. Nothing is written before :meth:`materialize`.

    Attributes
    ----------
    results : dict of str to ProfilingResult

    Raises
    ------
    InvalidProfileError
        If the file is not a pickled dict of profiles. Nothing in such a file is run.
    FileNotFoundError
        If the file does not exist.
    """

    def __init__(self, database_filename: str | os.PathLike[str], new_database: bool = False) -> None:
        self.database_filename = database_filename
        self.results: dict[str, ProfilingResult] = {} if new_database else read_profiles(Path(database_filename))

    def get(self, name: str) -> ProfilingResult | None:
        """Return the profile of a model, None if absent."""
        return self.results.get(name)

    def update(self, result: ProfilingResult) -> None:
        """Add a profile, replacing one of the same name."""
        self.results[result.model_name] = result

    def update_from_csv(self, file: str | os.PathLike[str]) -> None:
        """Add the measurements of a file of manual configs (:func:`alpa_serve.profiles.tsv.read_manual`).

        Raises
        ------
        InvalidProfileError
            Naming file, line and column; the database is then unchanged.
        """
        self._add(tsv.read_manual(file))

    def update_from_auto_csv(self, file: str | os.PathLike[str]) -> None:
        """Add the measurements of a file of automatic configs (:func:`alpa_serve.profiles.tsv.read_auto`).

        Raises
        ------
        InvalidProfileError
            Naming file, line and column; the database is then unchanged.
        """
        self._add(tsv.read_auto(file))

    def _add(self, rows: list[tsv.ProfileRow]) -> None:
        for row in rows:
            row.add_to(self.results.setdefault(row.model_name, ProfilingResult(row.model_name)))

    def materialize(self) -> None:
        """Write all profiles to the file, replacing it in one step; a link stays one, and the file keeps its mode.

        Raises
        ------
        OSError
            Naming the file, which is then as it was.
        """
        with replacing(self.database_filename) as file:
            pickle.dump(self.results, file)
