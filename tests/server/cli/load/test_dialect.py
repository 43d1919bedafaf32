import json

import pytest

from peftserve.server.cli.load.dialect import DIALECTS
from peftserve.server.cli.load.trace import Request

REQUEST = Request(None, "m", 5, 7, 3)


@pytest.mark.parametrize("name", DIALECTS)
def test_all_ask_for_the_same_work(name: str) -> None:
    body = DIALECTS[name](REQUEST)
    assert (body["model"], body["max_tokens"], body["temperature"], body["stream"]) == ("m", 7, 0, True)
    assert len(body["prompt"] if name != "transformers" else body["prompt"].split()) == 5


def test_each_has_its_own_way_not_to_stop() -> None:
    assert DIALECTS["vllm"](REQUEST)["ignore_eos"]
    assert "ignore_eos" not in DIALECTS["openai"](REQUEST)
    assert json.loads(DIALECTS["transformers"](REQUEST)["generation_config"])["eos_token_id"] == -1
