import math
from typing import Any

import pytest

from peftserve.server.cli.errors import CommandError
from peftserve.server.cli.load.checks import check, lengths_of
from peftserve.server.cli.load.lengths import Range


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_requests", 0, "--num-requests: 0 is not 1 or more"),
        ("rate", -1.0, "--rate: -1.0 is not more than 0"),
        ("slo_ttft", math.nan, "--slo-ttft: nan is not more than 0"),
        ("cv", math.inf, "--cv: inf is not 0 or more"),
        ("seed", -1, "--seed: -1 is not 0 or more"),
    ],
)
def test_a_mistake_names_its_flag(name: str, value: Any, message: str) -> None:
    check({})
    with pytest.raises(CommandError, match=message):
        check({name: value})


def test_lengths_are_text_or_a_presets_own() -> None:
    assert lengths_of("prompt_tokens", "3") == lengths_of("prompt_tokens", Range(3, 3))
    with pytest.raises(CommandError, match="--prompt-tokens: 0 is not 1 or more"):
        lengths_of("prompt_tokens", "0")
