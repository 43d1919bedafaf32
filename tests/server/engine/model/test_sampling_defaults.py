"""What of a generation configuration becomes a default of requests."""

import json
import logging
from pathlib import Path

import pytest

from peftserve.server.demo import DEMO_MODEL
from peftserve.server.engine.model.sampling_defaults import sampling_defaults

FILE = {
    "do_sample": True,
    "temperature": 0.6,
    "top_k": 20,
    "top_p": 0.95,
    "repetition_penalty": 1.05,
    "max_new_tokens": 77,
    "eos_token_id": [1, 2],
}


def written(folder: Path, **fields: object) -> str:
    (folder / "generation_config.json").write_text(json.dumps(fields))
    return str(folder)


def test_a_file_an_override_and_neither(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = written(tmp_path, **FILE)
    own = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05, "max_tokens": 77}
    with caplog.at_level(logging.INFO):
        assert sampling_defaults(model, "auto", None, False) == own
    assert "'temperature': 0.6" in caplog.text
    assert isinstance(sampling_defaults(model, "auto", None, False)["top_k"], int)
    assert sampling_defaults("/nowhere", model, '{"top_p": null, "min_p": 0.1}', False) == {
        **{name: value for name, value in own.items() if name != "top_p"},
        "min_p": 0.1,
    }
    for off in ("none", "vllm"):
        assert sampling_defaults(model, off, None, False) == {}
        assert sampling_defaults(model, off, '{"temperature": 0}', False) == {"temperature": 0.0}
    assert sampling_defaults(str(tmp_path / "nothing"), "auto", None, False) == {}
    assert sampling_defaults(str(DEMO_MODEL), "auto", None, False) == {}


def test_what_cannot_be_served_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    override = json.dumps({"temperature": -1, "top_k": "many", "repetition_penalty": True, "top_p": 0.5})
    assert sampling_defaults(str(tmp_path), "auto", override, False) == {"top_p": 0.5}
    assert [name in caplog.text for name in ("temperature", "top_k", "repetition_penalty")] == [True] * 3
