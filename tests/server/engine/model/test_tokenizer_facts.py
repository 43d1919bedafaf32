from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from peftserve.server.engine.model.tokenizer_facts import eos_token_ids, tokenizer_facts

Tiny = Callable[..., Path]


def test_the_tokenizer_is_read_as_transformers_resolves_it(tiny: Tiny) -> None:
    text, template, special, eos = tokenizer_facts(str(tiny()), False)
    assert text is not None
    assert '"</s>"' in text
    assert template is not None
    assert special["bos_token"] == "<s>"
    assert eos == 1


def test_a_model_without_a_tokenizer_has_no_facts_of_one(tiny: Tiny) -> None:
    folder = tiny()
    for file in folder.glob("*token*"):
        file.unlink()
    assert tokenizer_facts(str(folder), False) == (None, None, {}, None)


def test_the_template_of_a_processor_stands_in_for_the_tokenizers(tiny: Tiny) -> None:
    folder = tiny()
    (folder / "chat_template.jinja").unlink()
    assert tokenizer_facts(str(folder), False)[1] is None
    for text, template in [('{"chat_template": "hello"}', "hello"), ("[1]", None), ("{", None)]:
        (folder / "chat_template.json").write_text(text)
        assert tokenizer_facts(str(folder), False)[1] == template


@pytest.mark.parametrize(
    ("generation", "config", "tokenizer", "expected"),
    [([4, 5], 6, 7, {4, 5}), (3, 6, 7, {3}), (None, 6, 7, {6}), (None, None, 7, {7}), (None, None, None, set())],
)
def test_ends_of_sequence(generation: Any, config: int | None, tokenizer: int | None, expected: set[int]) -> None:
    text = SimpleNamespace(eos_token_id=config)
    generating = SimpleNamespace(eos_token_id=generation)
    model: Any = SimpleNamespace(generation_config=generating, config=SimpleNamespace(get_text_config=lambda: text))
    assert eos_token_ids(model, tokenizer) == expected
