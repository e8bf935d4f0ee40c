import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpa_serve.errors import InvalidTraceError, UnknownNameError
from alpa_serve.export.command_files import FORMATS, format_commands, parse_commands
from alpa_serve.export.maveriq_commands import Deploy, Send

TIMES = st.floats(0, 1e9)
COUNTS = st.integers(1, 10**6)
# one word, and not a comment
WORDS = st.text(min_size=1).filter(lambda text: text.split() == [text])
COMMANDS = st.lists(
    st.builds(
        Deploy,
        TIMES,
        COUNTS,
        WORDS,
        st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True).map(tuple),
        COUNTS,
        COUNTS,
        COUNTS,
    )
    | st.builds(Send, TIMES, COUNTS, WORDS, COUNTS, st.floats(min_value=0, exclude_min=True)),
    max_size=8,
).map(lambda commands: sorted(commands, key=lambda command: command.time_s))

DEPLOY = "1.5 deploy client_id=1 model=m device_assigned=0,1 tp_size=2 pp_size=1 batch_size=1"
SEND = "2.5 request client_id=1 model=m output_tokens=20 slo_s=2.5"


@given(COMMANDS, st.sampled_from(FORMATS))
def test_commands_written_and_read_are_the_same(commands, form):
    assert parse_commands(format_commands(commands, form, ["a comment\nof two lines"]), form) == commands


def test_a_plain_line_is_time_command_and_arguments():
    commands = [Deploy(1.5, 1, "m", (0, 1), 2, 1, 1), Send(2.5, 1, "m", 20, 2.5)]
    assert format_commands(commands, comments=["mine"]) == f"# mine\n{DEPLOY}\n{SEND}\n"
    assert parse_commands(f"\n{DEPLOY}\n  # more\n\n{SEND}") == commands


def test_json_has_no_infinity():
    text = format_commands([Send(2.5, 1, "m", 20, math.inf)], "jsonl")
    assert text.endswith('"slo_s": null}\n')
    assert parse_commands(text, "jsonl") == [Send(2.5, 1, "m", 20, math.inf)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1.5", "f, line 2: not a time, a command and its arguments: '1.5'"),
        ("1.5 stop", "f, line 2: unknown command 'stop'; known: deploy, request"),
        (SEND.replace("slo_s=2.5", "slo_s"), "f, line 2: 'slo_s' is no name=value"),
        (SEND + " slo_s=2", "f, line 2: 'slo_s=2' is given twice"),
        (SEND.replace(" slo_s=2.5", ""), "f, line 2: request lacks slo_s; it takes time_s, client_id, model"),
        (SEND + " tp_size=1", "f, line 2: request does not take tp_size; it takes time_s"),
        (SEND.replace("2.5 req", "nan req"), "f, line 2, time_s: a number of seconds >= 0 is wanted, got 'nan'"),
        (SEND.replace("slo_s=2.5", "slo_s=nan"), "f, line 2, slo_s: a number of seconds > 0 is wanted, got 'nan'"),
        (SEND.replace("=20", "=1.5"), "f, line 2, output_tokens: a whole number >= 1 is wanted, got '1.5'"),
        (DEPLOY.replace("0,1", "0,0"), "f, line 2, device_assigned: a list of devices, each once is wanted, got '0,0'"),
        (DEPLOY.replace("0,1", "0,"), "f, line 2, device_assigned: a list of devices, each once is wanted, got '0,'"),
        (DEPLOY.replace("model=m", "model="), "f, line 2, model: a name is wanted, got ''"),
        (SEND.replace("2.5 req", "0.5 req"), "f, line 2: time 0.5 comes after 1.5; times ascend"),
    ],
)
def test_a_plain_line_that_cannot_be_read_is_named(line, message):
    with pytest.raises(InvalidTraceError) as caught:
        parse_commands(f"{DEPLOY}\n{line}\n", source="f")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "f, line 1: not JSON"),
        ("[1]", "f, line 1: not a JSON object with a command: '[1]'"),
        ('{"command": ["deploy"]}', "f, line 1: unknown command ['deploy']"),
        ('{"command": "request", "time_s": 1}', "f, line 1: request lacks client_id, model, output_tokens, slo_s"),
        (
            '{"command": "request", "time_s": "1", "client_id": 1, "model": "m", "output_tokens": 1, "slo_s": 1}',
            "f, line 1, time_s: a number of seconds >= 0 is wanted, got '1'",
        ),
        (
            '{"command": "request", "time_s": 1, "client_id": true, "model": "m", "output_tokens": 1, "slo_s": 1}',
            "f, line 1, client_id: a whole number >= 1 is wanted, got True",
        ),
    ],
)
def test_a_json_line_that_cannot_be_read_is_named(line, message):
    with pytest.raises(InvalidTraceError) as caught:
        parse_commands(line, "jsonl", "f")
    assert str(caught.value).startswith(message)


def test_a_name_of_two_words_has_no_plain_form():
    with pytest.raises(InvalidTraceError, match="one word in a plain command list, got 'a b'"):
        format_commands([Send(0.0, 1, "a b", 1, 1.0)])
    with pytest.raises(UnknownNameError, match="unknown format of a command list 'xml'; known: text, jsonl"):
        format_commands([], "xml")
