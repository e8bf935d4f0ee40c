"""Files that are there in full or not at all."""

from __future__ import annotations

import os
import secrets
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a file to write; it takes the place of `path` at the end, in one step, unless the block raises.

    A link stays one, and a file that is replaced leaves its mode to the new one. Processes and threads may write the
    same path at once: the last one to end wins. A device or a pipe is written to as it is.

    Parameters
    ----------
    path : path-like

    Yields
    ------
    binary file

    Raises
    ------
    OSError
        Naming `path`, which is then as it was. Errors of the block about other files pass unchanged.
    """
    given = Path(path)
    if given.exists() and not given.is_file():
        with given.open("wb") as file:
            yield file
        return
    target = Path(os.path.realpath(given))
    # of a name that no other writer has, so that none deletes another's
    temporary = target.with_name(f".{secrets.token_hex(8)}.new")
    created = False
    try:
        with temporary.open("xb") as file:
            created = True
            yield file
        if target.exists():
            temporary.chmod(target.stat().st_mode)
        temporary.replace(target)
        created = False
    except OSError as error:
        if error.filename not in (None, os.fspath(temporary)):
            raise
        if error.errno is None:
            raise OSError(f"{given}: {error}") from error
        raise OSError(error.errno, error.strerror, os.fspath(given)) from None
    finally:
        if created:
            temporary.unlink(missing_ok=True)
