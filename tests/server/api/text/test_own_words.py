import json
import logging

import pytest

from peftserve.server.api.text.own_words import NOTHING, BaseWords, WordsReader

BASE = {"a": 0, "b": 1, "</s>": 2}
SIZE = 8


def _file(added, vocab=("a", "b")):
    words = {text: i for i, text in enumerate(vocab)}
    end = {"id": 2, "content": "</s>", "special": True}
    return {"model": {"type": "BPE", "vocab": words, "merges": []}, "added_tokens": [end, *added]}


@pytest.fixture
def read(tmp_path):
    """Reads the words of an adapter with files of these contents."""

    def read(files, templates=False, size=0):
        for name, content in files.items():
            (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        base = BaseWords(SIZE, lambda: BASE, "{{ bos_token }}{{ eos_token }}", {"eos_token": "</s>"})
        return WordsReader(base, templates).read(tmp_path, size)

    return read


def test_added_tokens_are_those_beyond_the_bases(read):
    added = [{"id": 9, "content": "<y>", "special": True}, {"id": 3, "content": "<x>", "lstrip": True}]
    words = read({"tokenizer.json": _file(added)}, size=10)
    assert [(token.id, token.content, token.special, token.lstrip) for token in words.added] == [
        (3, "<x>", False, True),
        (9, "<y>", True, False),
    ]
    assert words._replace(added=()) == NOTHING


@pytest.mark.parametrize(
    ("file", "why"),
    [
        (_file([{"id": 8, "content": "<x>"}]), "not in the vocabulary of 8"),
        (_file([{"id": 2, "content": "<x>"}]), "another in the base's"),
        (_file([{"id": 3, "content": ""}]), "of 0 characters"),
        (_file([], vocab=("b", "a")), "its token"),
        (_file([], vocab=("a", "b", "c")), "no added token"),
        ("{", "no tokenizer.json"),
        ({"model": {"vocab": 3}}, "no tokenizer.json"),
    ],
)
def test_another_tokenizer_is_left_aside_and_the_log_says_why(read, caplog, file, why):
    with caplog.at_level(logging.WARNING):
        assert read({"tokenizer.json": file}) == NOTHING
    assert why in caplog.text


def test_ends_are_those_of_both_files(read):
    added = [{"id": 3, "content": "<x>"}]
    config = {"eos_token": {"content": "<x>"}, "pad_token": "<p>", "bos_token": None}
    files = {"tokenizer.json": _file(added), "tokenizer_config.json": config}
    assert read(files).ends == (3,)
    assert read({**files, "generation_config.json": {"eos_token_id": [1, 3, True, -1, 99, "a"]}}).ends == (1, 3)
    assert read(
        {"generation_config.json": {"eos_token_id": 2}, "tokenizer_config.json": {"eos_token": "</s>"}}
    ).ends == (2,)
    assert read(files).special == (("eos_token", "<x>"),)  # the base's template has no pad_token


def test_a_template_is_taken_where_it_is_allowed(read):
    listed = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    assert read({"tokenizer_config.json": {"chat_template": listed}}).template is None
    assert read({}, templates=True).template == "d"
    assert read({"tokenizer_config.json": {"chat_template": "s"}}, templates=True).template == "s"
    assert read({"chat_template.jinja": "own"}, templates=True).template == "own"
