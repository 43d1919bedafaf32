"""A tokenizer as large models have it, byte-level BPE of any size, and JSON schemas of any size: both by chance."""

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END = "<|end|>"
SYLLABLES = [first + second for first in "bcdfghklmnprstvwz" for second in ("a", "e", "i", "o", "u", "an", "er", "is")]
PATTERNS = (r"^[A-Z]{2}-[0-9]{4}$", r"^[a-z][a-z0-9_]{2,15}$", r"^\+?[0-9 ]{6,14}$")

Schema = dict[str, Any]


def write_tokenizer(folder: Path, size: int, lines: int | None = None) -> None:
    """Train a tokenizer on made-up prose and JSON, and write it. Token 0 ends a sequence.

    lines: of text to learn from; without it, so many that the vocabulary becomes as large as `size`, most likely.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, min_frequency=1, show_progress=False
    )
    tokenizer.train_from_iterator(_text(Random(0), lines or size // 2), trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END).save_pretrained(folder)


def _text(random: Random, lines: int) -> Iterator[str]:
    words = ["".join(random.choices(SYLLABLES, k=random.randint(1, 4))) for _ in range(2 * lines + 50)]
    for _ in range(lines):
        # Few words are frequent and many are rare, as in any language.
        chosen = [words[int(len(words) * random.random() ** 2)] for _ in range(12)]
        yield " ".join(chosen).capitalize() + "."
        record = {chosen[0]: random.randint(0, 99_999), chosen[1]: [random.random(), True], chosen[2]: {"a": chosen[3]}}
        yield json.dumps(record, indent=random.choice((None, 2)))


def make_schema(random: Random, size: int) -> Schema:
    """Return a schema of an object whose text has at least so many bytes, with all of a record's usual types."""
    properties: dict[str, Schema] = {}
    while len(json.dumps(schema := _object(properties))) < size:
        name = "_".join(random.choices(SYLLABLES, k=4))
        properties[name] = random.choice(_MAKERS)(random)
    return schema


def endless(random: Random) -> Schema:
    """Return a schema of a list that takes thousands of tokens, of records with strings, numbers, lists and enums."""
    record = {name: make(random) for name, make in zip(("name", "amount", "tags", "state"), _MAKERS, strict=False)}
    return {"type": "array", "items": _object(record), "minItems": 100}


def _object(properties: dict[str, Schema]) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }


def _string(random: Random) -> Schema:
    return {"type": "string", "maxLength": random.randint(8, 64)}


def _number(random: Random) -> Schema:
    return {"type": random.choice(("number", "integer")), "minimum": 0, "maximum": random.randint(10, 10_000)}


def _list(random: Random) -> Schema:
    return {"type": "array", "items": _string(random), "minItems": 1, "maxItems": random.randint(2, 6)}


def _enum(random: Random) -> Schema:
    return {"enum": ["".join(random.choices(SYLLABLES, k=2)) for _ in range(random.randint(2, 8))]}


def _pattern(random: Random) -> Schema:
    return {"type": "string", "pattern": random.choice(PATTERNS)}


def _nested(random: Random) -> Schema:
    return _object({"id": _number(random), "label": _string(random), "seen": {"type": "boolean"}})


_MAKERS = (_string, _number, _list, _enum, _pattern, _nested)
