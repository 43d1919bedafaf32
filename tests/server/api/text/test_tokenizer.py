import threading
import time

import pytest

from peftserve.server.api.http.errors import ApiError
from peftserve.server.api.text.long_texts import LONG_TEXT, LongTexts
from peftserve.server.api.text.tokenizer import MAX_CHARACTERS, PORTION, Tokenizer

TEXT = "the quick brown fox "


@pytest.fixture
def made(model_info, tokenizer):
    return Tokenizer(model_info(tokenizer=tokenizer.to_str()))


@pytest.fixture
def lengths(monkeypatch):
    """The lengths of what was done as work on long texts."""
    seen, run = [], LongTexts.run

    async def watched(self, length, work):
        seen.append(length)
        return await run(self, length, work)

    monkeypatch.setattr(LongTexts, "run", watched)
    return seen


async def test_long_and_short_texts_have_the_tokens_that_they_have_alone(made, tokenizer, lengths):
    texts = [TEXT, "", "fox", TEXT * 5000, *[TEXT * 9] * 500, "é😀"]
    assert await made.encode_all(texts) == [tokenizer.encode(text).ids for text in texts]
    assert await made.encode_all(texts, False) == [
        tokenizer.encode(text, add_special_tokens=False).ids for text in texts
    ]
    assert await made.encode(TEXT) == tokenizer.encode(TEXT).ids
    assert max(lengths) == len(TEXT * 5000)
    assert sorted(lengths)[-3] <= PORTION  # several short ones at a time, and others between
    assert await made.encode_all([]) == []


async def test_many_short_texts_leave_the_loop_as_one_long_one_does(made, monkeypatch):
    loop, threads, encode = threading.get_ident(), set(), Tokenizer._encode

    def watched(*arguments):
        threads.add(threading.get_ident())
        return encode(*arguments)

    monkeypatch.setattr(Tokenizer, "_encode", watched)
    await made.encode_all(["fox"] * LONG_TEXT)
    assert loop not in threads
    await made.encode_all(["fox"] * 10)
    assert loop in threads


async def test_others_run_while_a_text_is_encoded(made, monkeypatch):
    """Counted, not timed: what another thread did between the begin and the end of the work itself."""
    turns, ended = [0], threading.Event()

    def other():
        while not ended.is_set():
            turns[0] += 1
            time.sleep(0)

    async def watched(self, length, work):
        before = turns[0]
        result = work()
        assert turns[0] > before
        return result

    monkeypatch.setattr(LongTexts, "run", watched)
    thread = threading.Thread(target=other)
    thread.start()
    try:
        await made.encode(TEXT * 20_000)
    finally:
        ended.set()
        thread.join()


async def test_a_text_that_is_too_long_for_any_model_is_not_encoded(made, monkeypatch):
    monkeypatch.setattr(Tokenizer, "_encode", lambda *_: pytest.fail("encoded"))
    with pytest.raises(ApiError, match=f"has {MAX_CHARACTERS + 1} characters; this server encodes at most") as caught:
        await made.encode_all(["short", "x" * (MAX_CHARACTERS + 1)])
    assert caught.value.body.code == "text_too_long"


def test_the_most_that_may_fit_is_what_the_vocabulary_allows(made, model_info, tokenizer):
    longest = max(map(len, tokenizer.get_vocab()))
    assert made.most_in_context == 128 * longest
    huge = Tokenizer(model_info(tokenizer=tokenizer.to_str(), max_model_len=1 << 20))
    assert (huge.most_characters, huge.most_in_context) == (16 << 20, min(16, longest) << 20)
    assert Tokenizer(model_info()).most_in_context == MAX_CHARACTERS


async def test_a_long_list_of_tokens_is_text_again(made, tokenizer):
    ids = tokenizer.encode(TEXT * 2000).ids
    assert len(ids) > LONG_TEXT
    assert await made.decode_long(ids) == TEXT * 2000
    assert await made.token_strings([*ids[:3], 399]) == [*tokenizer.encode(TEXT).tokens[:3], ""]
