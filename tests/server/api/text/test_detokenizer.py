import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from peftserve.server.api.text.detokenizer import REPLACEMENT, WindowDetokenizer, detokenize
from peftserve.server.api.text.tokenizer import Tokenizer as ServerTokenizer

CORPUS = ["the quick brown fox", "Grüße aus Köln", "你好,世界", "emoji 😀 👩‍👩‍👧 family", "tabs\tand\nlines  double"]


def _byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<tool call>", normalized=False)])
    return tokenizer


def _metaspace():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=80, special_tokens=["<s>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _byte_fallback():
    """As Llama 2 has it: blanks as U+2581, single bytes for what the vocabulary lacks."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "\u2581": 3, "a": 4, "b": 5, "\u2581a": 6}
    vocabulary |= {f"<0x{byte:02X}>": 7 + byte for byte in range(256)}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, [("\u2581", "a")], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


TOKENIZERS = {"byte level": _byte_level(), "metaspace": _metaspace(), "byte fallback": _byte_fallback()}


def _server(model_info, name):
    return ServerTokenizer(model_info(tokenizer=TOKENIZERS[name].to_str()))


@pytest.fixture(params=list(TOKENIZERS))
def name(request):
    return request.param


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(0, 321), max_size=40), skip=st.booleans())
@pytest.mark.parametrize("name", ["byte level", "metaspace"])
def test_any_tokens_one_by_one_give_what_they_give_at_once(model_info, name, ids, skip):
    fast = TOKENIZERS[name]
    ids = [i for i in ids if i < fast.get_vocab_size()]
    server = _server(model_info, name)
    assert server.decode(ids, skip) == fast.decode(ids, skip_special_tokens=skip)


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.sampled_from("ab 你好😀é\n"), max_size=30), skip=st.booleans())
def test_texts_survive_in_every_kind_of_tokenizer(model_info, text, skip):
    for name, fast in TOKENIZERS.items():
        ids = fast.encode(text).ids
        assert _server(model_info, name).decode(ids, skip) == fast.decode(ids, skip_special_tokens=skip)


def test_no_half_character_is_ever_shown(model_info, name):
    detokenizer = _server(model_info, name).detokenizer()
    pieces = [detokenizer.push(i) for i in TOKENIZERS[name].encode("ab 😀你 a").ids]
    assert REPLACEMENT not in "".join(pieces)


def test_a_character_cut_off_at_the_end_shows_as_the_replacement(model_info):
    server = _server(model_info, "byte level")
    ids = TOKENIZERS["byte level"].encode("a\U0001f680").ids
    assert server.decode(ids[:-1]) == "a" + REPLACEMENT


def test_window_stays_short_whatever_comes():
    sizes = []

    def decode(ids):
        sizes.append(len(ids))
        return REPLACEMENT * len(ids)

    detokenize(WindowDetokenizer(decode, frozenset()), range(1000))
    assert max(sizes) <= 40
    sizes.clear()
    detokenize(WindowDetokenizer(lambda ids: sizes.append(len(ids)) or "", frozenset()), range(1000))
    assert max(sizes) <= 40
