from hypothesis import given
from hypothesis import strategies as st

from alpa_serve.runtime.models.placeholder import MOST_WORDS, SHORTEST_PAUSE_S, pieces, placeholder_text


@given(st.floats(0, 1e6), st.floats(0, 100), st.floats(0, 1), st.integers(1, 10**9))
def test_pieces_have_all_tokens_in_time_and_are_few(begin, seconds, first_share, tokens):
    end = begin + seconds
    found = list(pieces(begin, end, first_share, tokens))
    times = [when for when, _ in found]
    assert sum(count for _, count in found) == tokens
    assert all(count > 0 for _, count in found)
    assert times == sorted(times)
    assert times[0] >= begin
    assert times[-1] == end
    assert len(found) <= seconds / SHORTEST_PAUSE_S + 3


@given(st.floats(0, 1), st.floats(0.001, 0.1), st.integers(2, 200))
def test_no_token_comes_early_and_none_much_later_than_its_decode_step(first_s, step_s, tokens):
    end = first_s + (tokens - 1) * step_s
    sent = 0
    for when, count in pieces(0.0, end, first_s / end, tokens):
        for token in range(sent, sent + count):
            assert -1e-6 <= when - (first_s + token * step_s) < SHORTEST_PAUSE_S + 1e-6
        sent += count


def test_a_single_token_comes_at_the_end():
    assert list(pieces(1.0, 3.0, 0.5, 1)) == [(3.0, 1)]


def test_no_token_is_no_piece():
    assert list(pieces(1.0, 3.0, 0.5, 0)) == []


def test_text_has_a_word_per_token_up_to_a_bound():
    assert placeholder_text(3) == "token token token"
    assert placeholder_text(2, goes_on=True) == " token token"
    assert placeholder_text(0) == placeholder_text(0, goes_on=True) == ""
    assert len(placeholder_text(10**9).split()) == MOST_WORDS
