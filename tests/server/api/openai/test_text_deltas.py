import pytest

from peftserve.server.api.openai.stop_strings import StopStrings
from peftserve.server.api.openai.text_deltas import Delta, SequenceDecoder
from peftserve.server.api.text.detokenizer import WindowDetokenizer
from peftserve.server.wire.messages import Logprob, SequenceOutput, TokenLogprobs


def _decoder(stops=(), include=False, **fields):
    """Each token is the character with its code point."""
    detokenizer = WindowDetokenizer(lambda ids: "".join(map(chr, ids)), frozenset())
    return SequenceDecoder(detokenizer, StopStrings(stops, include), **fields)


def _output(text, **fields):
    ids = [ord(c) for c in text]
    logprobs = [TokenLogprobs(Logprob(i, -1.0, 1)) for i in ids]
    return SequenceOutput(request_id="r", token_ids=ids, logprobs=logprobs, **fields)


def _push_all(decoder, *outputs):
    whole = Delta()
    for output in outputs:
        whole.extend(decoder.push(output))
    return whole


def test_the_whole_is_the_sum_of_its_deltas():
    whole = _push_all(_decoder(), _output("ab", cached_tokens=3), _output("c"), _output("d", finish_reason="length"))
    assert (whole.text, whole.finish_reason, whole.stop_reason, whole.cached_tokens) == ("abcd", "length", None, 3)
    assert [token.offset for token in whole.shown] == [0, 1, 2, 3]
    assert whole.cumulative_logprob == -4.0


def test_tokens_are_shown_with_their_text_and_not_before():
    decoder = _decoder(["bcx"])
    first = decoder.push(_output("ab"))
    assert (first.text, [t.offset for t in first.shown], len(first.token_ids)) == ("a", [0], 2)
    second = decoder.push(_output("c"))
    assert (second.text, second.shown) == ("", [])
    third = decoder.push(_output("d", finish_reason="length"))
    assert (third.text, [t.offset for t in third.shown]) == ("bcd", [1, 2, 3])


def test_what_was_held_back_is_shown_at_the_end():
    whole = _push_all(_decoder(["end"]), _output("the e"), _output("n", finish_reason="length"))
    assert (whole.text, whole.finish_reason, whole.stop_reason) == ("the en", "length", None)


def test_a_stop_string_beats_the_engines_own_end_and_drops_what_follows():
    whole = _push_all(_decoder(["cd"]), _output("abcdef", finish_reason="length"))
    assert (whole.text, whole.finish_reason, whole.stop_reason) == ("ab", "stop", "cd")
    assert [chr(token.token_id) for token in whole.shown] == ["a", "b"]
    assert len(whole.token_ids) == 4


@pytest.mark.parametrize(("show", "text"), [(False, "ab"), (True, "ab!")])
def test_the_stop_token_is_shown_on_demand_only(show, text):
    decoder = _decoder(show_stop_token=show)
    whole = decoder.push(_output("ab!", finish_reason="stop", stop_token_id=ord("!")))
    assert (whole.text, whole.stop_reason) == (text, ord("!"))
    assert len(whole.shown) == 3


def test_the_same_token_before_the_end_is_text():
    whole = _push_all(_decoder(), _output("a!"), _output("!", finish_reason="stop", stop_token_id=ord("!")))
    assert whole.text == "a!"


@pytest.mark.parametrize(("min_tokens", "text"), [(0, ""), (2, "ab"), (3, "ab"), (5, "abab"), (6, "ababab")])
def test_stop_strings_before_the_least_number_of_tokens_do_not_count(min_tokens, text):
    decoder = _decoder(["ab"], min_tokens=min_tokens)
    whole = Delta()
    for i, character in enumerate("ababab"):
        delta = decoder.push(_output(character, finish_reason="length" if i == 5 else None))
        whole.extend(delta)
        if delta.finish_reason:
            break
    assert whole.text == text
