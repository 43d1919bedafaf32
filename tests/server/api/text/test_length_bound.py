import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from peftserve.server.api.text.detokenizer import byte_alphabet
from peftserve.server.api.text.length_bound import characters_per_token

BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}
WORDS = ["▁the", "    ", "the quick brown fox", "\u1e9b"]
COMPOSING = st.text("a \u0301\u0323\u03b1\u0313\u0300\u0345\u1100\u1161\u11a8\u212b\ufdfa\u0130\n\x00€😀", max_size=40)
ANY = st.one_of(COMPOSING, st.text(max_size=40), st.text(" the quickbrownfx", max_size=200))


def _byte_level(normalizer=None, splitter=None, **fields):
    vocab = {character: i for i, character in enumerate(byte_alphabet())}
    vocab["ĠĠĠĠĠĠĠĠ"] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab, [], **fields))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*([splitter] if splitter else []), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return _with(tokenizer, normalizer)


def _bpe(normalizer=None, vocab=None, **fields):
    vocab = vocab or {**BYTES, **{word: 256 + i for i, word in enumerate(WORDS)}, "<unk>": 260, "▁": 261, "a": 262}
    return _with(Tokenizer(models.BPE(vocab, [], **{"unk_token": "<unk>", **fields})), normalizer)


def _unigram(byte_fallback):
    vocab = [("<unk>", 0.0), *((token, -9.0) for token in [*BYTES, *WORDS, "▁", "a"])]
    tokenizer = Tokenizer(models.Unigram(vocab, 0, byte_fallback))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


def _with(tokenizer, normalizer):
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return tokenizer


def _added(tokenizer, content, **fields):
    tokenizer.add_tokens([AddedToken(content, **fields)])
    return tokenizer


def _bound(tokenizer):
    normalizer = tokenizer.normalizer
    return characters_per_token(tokenizer.to_str(), str if normalizer is None else normalizer.normalize_str)


LLAMA = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
BOUNDED = {
    "GPT-2": (_byte_level(), 8),
    "Llama 3": (_byte_level(splitter=pre_tokenizers.Split(Regex(r"\p{L}+|\s+"), "isolated")), 8),
    "Qwen": (_byte_level(normalizers.NFC()), 32),
    "NFKC": (_byte_level(normalizers.NFKC()), 32),
    "decomposed": (_byte_level(normalizers.Sequence([normalizers.NFKD(), normalizers.Lowercase()])), 8),
    "shorter": (_byte_level(normalizers.Replace("the", "t")), 24),
    "Llama 2": (_bpe(LLAMA, byte_fallback=True, fuse_unk=True), 19),
    "one unknown each": (_bpe(fuse_unk=False), 19),
    "T5 with bytes": (_unigram(True), 19),
    "added": (_added(_byte_level(), "<|a long special token|>"), 24),
    "added, longer normalized": (
        _added(_byte_level(normalizers.Replace("x", "yyyyyyyyyyyy")), "x" * 3, normalized=True),
        36,
    ),
}


@pytest.mark.parametrize(("tokenizer", "bound"), BOUNDED.values(), ids=BOUNDED)
def test_no_text_has_fewer_tokens_than_the_bound_says(tokenizer, bound):
    assert _bound(tokenizer) == bound

    @given(ANY)
    def check(text):
        assert len(text) <= bound * len(tokenizer.encode(text, add_special_tokens=False).ids)

    check()


UNBOUNDED = {
    "strips": (_byte_level(normalizers.Strip()), " " * 1000),
    "collapses": (_byte_level(normalizers.Replace(Regex(" +"), " ")), " " * 1000),
    "deletes": (_byte_level(normalizers.Replace("the", "")), "the" * 1000),
    "no accents": (_byte_level(normalizers.StripAccents()), "\u0301" * 1000),
    "drops blanks": (_byte_level(splitter=pre_tokenizers.WhitespaceSplit()), " " * 1000),
    "drops what splits": (_byte_level(splitter=pre_tokenizers.Split("-", "removed")), "-" * 1000),
    "fused": (_bpe(fuse_unk=True), "z" * 1000),
    "without all bytes": (_bpe(vocab={"<0x00>": 0, "<unk>": 1}, byte_fallback=True, fuse_unk=True), "z" * 1000),
    "silent": (_bpe(vocab={"a": 0}, unk_token=None), "z" * 1000),
    "unigram": (_unigram(False), "z" * 1000),
    "words": (Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>")), "z" * 1000),
    "pieces": (Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")), "z" * 1000),
    "takes blanks": (_added(_byte_level(), "<s>", lstrip=True), " " * 1000 + "<s>"),
    "takes blanks behind": (_added(_byte_level(), "<s>", rstrip=True), "<s>" + " " * 1000),
}


@pytest.mark.parametrize(("tokenizer", "text"), UNBOUNDED.values(), ids=UNBOUNDED)
def test_what_makes_little_of_any_text_has_no_bound(tokenizer, text):
    assert _bound(tokenizer) is None
    assert len(tokenizer.encode(text, add_special_tokens=False).ids) <= 2


def test_composition_makes_one_character_of_four_at_most():
    """What the bound of NFC and NFKC rests on, of all of Unicode."""
    characters = map(chr, (*range(0xD800), *range(0xE000, 0x110000)))
    assert max(len(unicodedata.normalize("NFD", character)) for character in characters) == 4


def test_a_tokenizer_without_optional_parts():
    spec = {"model": {"type": "BPE", "vocab": {"ab": 0}, "merges": [], "unk_token": "ab"}}
    assert characters_per_token(json.dumps(spec), str) == 2


def test_the_decoder_plays_no_part():
    tokenizer = _byte_level()
    tokenizer.decoder = decoders.ByteLevel()
    assert _bound(tokenizer) == 8
