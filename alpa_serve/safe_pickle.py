"""Reading pickles without running anything that is in the file.

Whatever a pickle names is answered by a stand-in made for this one load: functions and classes of this module's own
that keep what they are given, never those that are named. Plain containers, text, numbers and NumPy arrays of numbers
are admitted here; a reader of other objects adds stand-ins for them.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO

    from numpy.typing import NDArray

MAX_NESTING = 20
"""How deep tuples may nest."""

_NUMBER_CODES = {"b1", "f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"}

OBJECT_BASE, TUPLE_BASE = "object", "tuple"
"""What a pickle of protocol 0 or 1 names as the base of a class: words here, never called."""


class _NumberType:
    """Stands in for a NumPy dtype: one of the plain number types, or refused."""

    def __init__(self, code: object, align: object = False, copy: object = True) -> None:
        if code not in _NUMBER_CODES:
            raise pickle.UnpicklingError(f"it holds NumPy data of type {code!r}, which is no number")
        self.dtype = np.dtype(str(code))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        byte_order = state[1]
        if byte_order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(byte_order)

    def numbers(self, raw: object) -> NDArray[Any]:
        """Return the numbers in `raw` bytes, shape (n,)."""
        if not isinstance(self, _NumberType) or not isinstance(raw, (bytes, bytearray)):
            raise pickle.UnpicklingError("it holds NumPy data that is not plain numbers")
        return np.frombuffer(raw, dtype=self.dtype)


class NumberList(list[Any]):
    """Stands in for a NumPy array: its numbers as nested lists."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.keep(_array_of_state(state))

    def keep(self, array: NDArray[Any]) -> None:
        """Take the numbers of an array."""
        self[:] = array.tolist()


class NumberArray:
    """Stands in for a NumPy array and keeps it as one.

    Attributes
    ----------
    array : ndarray or None
        None until the pickle fills it. It may be read-only.
    """

    array: NDArray[Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.keep(_array_of_state(state))

    def keep(self, array: NDArray[Any]) -> None:
        """Take the array."""
        self.array = array


def _array_of_state(state: tuple[Any, ...]) -> NDArray[Any]:
    _version, shape, number_type, fortran, raw = state
    return _shaped(_NumberType.numbers(number_type, raw), shape, "F" if fortran else "C")


def _shaped(numbers: NDArray[Any], shape: Any, order: Any) -> NDArray[Any]:
    if not isinstance(shape, tuple) or not shape:
        raise pickle.UnpicklingError("it holds a NumPy array without dimensions")
    return numbers.reshape(shape, order=order)


def _make_scalar(number_type: _NumberType, raw: object) -> Any:
    (number,) = _NumberType.numbers(number_type, raw).tolist()
    return number


def _encode_latin1(text: object, encoding: object, part_of: str) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(f"it holds text in an encoding that no {part_of} uses")
    return text.encode("latin1")


def _make_bytes(arguments: tuple[object, ...], part_of: str) -> bytes:
    # how protocols 0 to 2 write empty bytes
    if arguments:
        raise pickle.UnpicklingError(f"it makes bytes in a way that no {part_of} uses")
    return b""


def _make_set(members: object) -> set[Any]:
    if not isinstance(members, list) or any(isinstance(member, (tuple, frozenset)) for member in members):
        raise pickle.UnpicklingError("it holds a set of other than numbers and text")
    return set(members)


class SafeUnpickler(pickle._Unpickler):  # type: ignore[name-defined,misc,unused-ignore]
    """Admits plain containers, text, numbers and NumPy arrays of numbers; the latter as stand-ins.

    It is the unpickler written in Python, so that tuples can be kept from nesting: a tuple that is a key is hashed,
    and the interpreter hashes without a limit to the depth.

    Parameters
    ----------
    file : binary file
    part_of : str
        What the file should hold, in a word for messages: "profile".
    array_class : type
        :class:`NumberList` or :class:`NumberArray`, or a class made from one of them: what arrays become.

    Notes
    -----
    `load` raises any exception on a damaged or crafted file; a caller turns them all into one of its own.
    """

    dispatch = pickle._Unpickler.dispatch.copy()  # type: ignore[attr-defined,unused-ignore]

    def __init__(
        self, file: IO[bytes], part_of: str, array_class: type[NumberList] | type[NumberArray] = NumberList
    ) -> None:
        super().__init__(file)
        self._part_of = part_of
        self._depths: dict[int, int] = {}
        # classes and functions of this load alone: what a crafted file does to them reaches nothing else (functions,
        # not functools.partial, whose state a pickle could replace)

        def make_array(raw: object, number_type: _NumberType, shape: object, order: object) -> Any:
            content = bytes(raw) if isinstance(raw, pickle.PickleBuffer) else raw
            made = array_class()
            made.keep(_shaped(_NumberType.numbers(number_type, content), shape, order))
            return made

        self._admitted: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("numpy", "dtype"): type("dtype", (_NumberType,), {}),
            ("numpy", "ndarray"): type("ndarray", (array_class,), {}),
            ("_codecs", "encode"): lambda text, encoding: _encode_latin1(text, encoding, part_of),
        }
        for module in ("builtins", "__builtin__"):
            self._admitted |= {
                (module, "set"): lambda members: _make_set(members),
                (module, "bytes"): lambda *arguments: _make_bytes(arguments, part_of),
                (module, "object"): OBJECT_BASE,
                (module, "tuple"): TUPLE_BASE,
            }
        for module in ("numpy.core", "numpy._core"):
            self._admitted[f"{module}.multiarray", "scalar"] = lambda *arguments: _make_scalar(*arguments)
            self._admitted[f"{module}.multiarray", "_reconstruct"] = lambda *_: array_class()  # BUILD fills it
            self._admitted[f"{module}.numeric", "_frombuffer"] = make_array

    def admit(self, module: str, name: str, stand_in: Any) -> None:
        """Answer a name in the pickle with `stand_in`, which must be safe to call with anything."""
        self._admitted[module, name] = stand_in

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of a name; refuse what has none."""
        try:
            return self._admitted[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of a {self._part_of}") from None

    def _build_hashable(self, build: Callable[[Any], None]) -> None:
        """Build a hashable container and refuse it if it nests too deeply."""
        build(self)
        made = self.stack[-1]  # type: ignore[attr-defined,unused-ignore]
        if isinstance(made, (tuple, frozenset)):
            # by id: every tuple that is alive had its depth set when it was built
            nested = (self._depths.get(id(member), 0) for member in made if type(member) in (tuple, frozenset))
            depth = 1 + max(nested, default=0)
            if depth > MAX_NESTING:
                raise pickle.UnpicklingError(f"it nests tuples more deeply than any {self._part_of}")
            self._depths[id(made)] = depth


def _watched(build: Callable[[Any], None]) -> Callable[[Any], None]:
    return lambda unpickler: unpickler._build_hashable(build)


for _opcode in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.FROZENSET):
    SafeUnpickler.dispatch[_opcode[0]] = _watched(SafeUnpickler.dispatch[_opcode[0]])
