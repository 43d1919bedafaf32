import json
from pathlib import Path
from random import Random

import jsonschema
from llguidance import LLMatcher
from transformers import AutoTokenizer

from benchmarks.models.words import END, endless, make_schema, write_tokenizer


def test_a_tokenizer_has_its_size_and_any_text(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, 1000)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 1000
    assert tokenizer.convert_tokens_to_ids(END) == tokenizer.eos_token_id == 0
    text = 'Zé {"a": [1.5]}\n'
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_schemas_are_sound_differ_and_have_grammars() -> None:
    schemas = [make_schema(Random(seed), 2000) for seed in range(3)] + [endless(Random(1))]
    for schema in schemas:
        jsonschema.Draft202012Validator.check_schema(schema)
        is_error, messages = LLMatcher.validate_grammar_with_warnings(LLMatcher.grammar_from_json_schema(schema))
        assert not is_error, messages
    assert 2000 <= len(json.dumps(schemas[0])) < 2600
    assert schemas[0] != schemas[1]
