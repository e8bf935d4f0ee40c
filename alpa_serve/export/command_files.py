"""Timed commands as text and back: a line each, plain or JSON.

Plain, a line is the time in seconds, the command, and its arguments as name=value::

    0.0 deploy client_id=1 model=gptj-6b device_assigned=0,1 tp_size=2 pp_size=1 batch_size=1
    97.25 request client_id=1 model=gptj-6b output_tokens=20 slo_s=2.5

Blank lines and lines that begin with ``#`` are no commands. In JSON lines, each line is an object with the same names,
``time_s`` and ``command``, and device_assigned as a list.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from alpa_serve.errors import InvalidTraceError, UnknownNameError
from alpa_serve.export.maveriq_commands import Command, Deploy, Send
from alpa_serve.validation import check_known

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

FORMATS = ("text", "jsonl")
"""Names of the two forms."""

_KINDS: dict[str, type[Deploy] | type[Send]] = {"deploy": Deploy, "request": Send}


def format_commands(commands: Iterable[Command], form: str = "text", comments: Iterable[str] = ()) -> str:
    """Write commands as text; reading it back gives equal ones.

    Parameters
    ----------
    commands : iterable of Deploy or Send
    form : {"text", "jsonl"}
    comments : iterable of str
        Lines to put first; JSON lines can hold none.

    Raises
    ------
    UnknownNameError
        If there is no such form.
    InvalidTraceError
        If a model's name has a blank in it, which the plain form cannot hold.
    """
    if check_known(form, FORMATS, "format of a command list") == "jsonl":
        return "".join(f"{json.dumps(_json_row(command))}\n" for command in commands)
    lines = [f"# {line}" for text in comments for line in text.splitlines()]
    lines += [_plain_line(command) for command in commands]
    return "".join(f"{line}\n" for line in lines)


def parse_commands(text: str, form: str = "text", source: str = "command list") -> list[Command]:
    """Read what :func:`format_commands` writes.

    Parameters
    ----------
    text : str
    form : {"text", "jsonl"}
    source : str
        Name of the file, for messages.

    Raises
    ------
    UnknownNameError
        If there is no such form.
    InvalidTraceError
        Naming file, line and argument of what cannot be read, or a time that goes back.
    """
    read = _read_json if check_known(form, FORMATS, "format of a command list") == "jsonl" else _read_plain
    commands: list[Command] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip() or (form == "text" and line.lstrip().startswith("#")):
            continue
        where = f"{source}, line {number}"
        command = read(line, where)
        if commands and command.time_s < commands[-1].time_s:
            raise InvalidTraceError(f"{where}: time {command.time_s} comes after {commands[-1].time_s}; times ascend")
        commands.append(command)
    return commands


def _word_of(command: Command) -> str:
    return "deploy" if isinstance(command, Deploy) else "request"


def _plain_line(command: Command) -> str:
    arguments = asdict(command)
    time_s = arguments.pop("time_s")
    if command.model.split() != [command.model]:
        raise InvalidTraceError(f"a model's name is one word in a plain command list, got {command.model!r}")
    if isinstance(command, Deploy):
        arguments["device_assigned"] = ",".join(map(str, command.device_assigned))
    return " ".join([repr(time_s), _word_of(command), *(f"{name}={value}" for name, value in arguments.items())])


def _json_row(command: Command) -> dict[str, Any]:
    arguments = asdict(command)
    # JSON has no infinity
    if arguments.get("slo_s") == math.inf:
        arguments["slo_s"] = None
    return {"time_s": arguments.pop("time_s"), "command": _word_of(command), **arguments}


def _read_plain(line: str, where: str) -> Command:
    words = line.split()
    if len(words) < 2:
        raise InvalidTraceError(f"{where}: not a time, a command and its arguments: {line!r}")
    time_text, word, *pairs = words
    arguments: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or name in arguments:
            raise InvalidTraceError(f"{where}: {pair!r} is {'given twice' if equals else 'no name=value'}")
        arguments[name] = value
    return _command(word, {"time_s": time_text, **arguments}, _PLAIN_READERS, where)


def _read_json(line: str, where: str) -> Command:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidTraceError(f"{where}: not JSON: {error}") from None
    if not isinstance(row, dict) or "command" not in row:
        raise InvalidTraceError(f"{where}: not a JSON object with a command: {line!r}")
    return _command(row.pop("command"), row, _JSON_READERS, where)


def _command(word: object, arguments: dict[str, Any], readers: dict[str, Callable[[Any], Any]], where: str) -> Command:
    try:
        kind = _KINDS[check_known(word, _KINDS, "command")]
    except UnknownNameError as error:
        raise InvalidTraceError(f"{where}: {error}") from None
    names = [field.name for field in fields(kind)]
    lacking = [name for name in names if name not in arguments]
    unknown = [name for name in arguments if name not in names]
    if lacking or unknown:
        problem = f"lacks {', '.join(lacking)}" if lacking else f"does not take {', '.join(unknown)}"
        raise InvalidTraceError(f"{where}: {word} {problem}; it takes {', '.join(names)}")
    values = {}
    for name in names:
        try:
            values[name] = readers[name](arguments[name])
        except (ValueError, TypeError):
            raise InvalidTraceError(f"{where}, {name}: {_WANTED[name]} is wanted, got {arguments[name]!r}") from None
    return kind(**values)


def _seconds(value: object) -> float:
    number = _number(value)
    if not 0 <= number < math.inf:
        raise ValueError
    return number


def _slo(value: object) -> float:
    number = _number(value)
    # NaN is neither
    if not number > 0:
        raise ValueError
    return number


def _json_slo(value: object) -> float:
    return math.inf if value is None else _slo(value)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    return float(value)


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError
    return value


def _devices(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not value or len(set(value)) != len(value):
        raise ValueError
    if any(isinstance(device, bool) or not isinstance(device, int) or device < 0 for device in value):
        raise ValueError
    return tuple(value)


def _name(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError
    return value


def _digits(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError
    return int(text)


_COUNTS = ("client_id", "tp_size", "pp_size", "batch_size", "output_tokens")

_WANTED = {
    "time_s": "a number of seconds >= 0",
    "slo_s": "a number of seconds > 0",
    "model": "a name",
    "device_assigned": "a list of devices, each once",
    **dict.fromkeys(_COUNTS, "a whole number >= 1"),
}

_JSON_READERS: dict[str, Callable[[Any], Any]] = {
    "time_s": _seconds,
    "slo_s": _json_slo,
    "model": _name,
    "device_assigned": _devices,
    **dict.fromkeys(_COUNTS, _whole),
}

_PLAIN_READERS: dict[str, Callable[[Any], Any]] = {
    "time_s": lambda text: _seconds(float(text)),
    "slo_s": lambda text: _slo(float(text)),
    "model": _name,
    "device_assigned": lambda text: _devices([_digits(device) for device in text.split(",")]),
    **dict.fromkeys(_COUNTS, lambda text: _whole(_digits(text))),
}
