import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftserve.adapters.adapterhub.config import HubConfig, parse_adapterhub
from peftserve.adapters.errors import AdapterError, InvalidAdapter
from peftserve.adapters.peft.config import AdapterHubConfig, parse_config

FIXTURE = Path(__file__).parent / "fixture"
SAVED = {
    name: json.loads((FIXTURE / "llama" / name / "adapter_config.json").read_text())
    for name in ("houlsby", "lora", "ia3", "vera", "multitask", "prefix", "union")
}


def parsed(saved: str, *, model_type: Any = "llama", name: Any = "a", version: Any = None, **changes: Any) -> HubConfig:
    raw = {**SAVED[saved], "model_type": model_type, "name": name, "config": SAVED[saved]["config"] | changes}
    return parse_adapterhub(raw if version is None else {**raw, "version": version})


def test_methods() -> None:
    methods = {saved: parsed(saved).method for saved in SAVED}
    assert methods == {
        "houlsby": "BOTTLENECK",
        "lora": "LORA",
        "ia3": "IA3",
        "vera": "VERA",
        "multitask": "MTL_LORA",
        "prefix": "PREFIX_TUNING",
        "union": "UNION",
    }
    assert [part.method for part in parsed("union").parts] == ["PREFIX_TUNING", "BOTTLENECK", "LORA"]
    assert isinstance(parse_config(SAVED["union"]), AdapterHubConfig)


@pytest.mark.parametrize(
    ("version", "alpha"),
    [("adapters.1.0.1", 3), ("adapters.1.1.0.dev0", 3), ("adapters.0.2.2", 3), ("adapters.1.1.0", 7), ("3.2.1", 7)],
)
def test_old_releases_trained_with_another_scale_than_they_wrote(version: str, alpha: float) -> None:
    part: Any = parsed("lora", version=version).parts[0]
    assert (part.rank, part.alpha) == (3, alpha)


@pytest.mark.parametrize(
    ("saved", "changes", "message"),
    [
        (
            "lora",
            {"architecture": "reft"},
            "architecture='reft' is not supported yet: it changes tokens by their place",
        ),
        ("lora", {"architecture": "prompt_tuning"}, "architecture='prompt_tuning' is not supported yet: the library"),
        ("lora", {"architecture": "news"}, "architecture='news' is not supported yet: of AdapterHub's methods"),
        ("lora", {"architecture": ["lora"]}, "architecture=\\['lora'\\] is not supported yet: of AdapterHub's"),
        ("lora", {"use_gating": True}, "use_gating is not supported yet: the gate is an average over the sequence"),
        ("prefix", {"use_gating": True}, "use_gating is not supported yet: the gate is an average over the sequence"),
        ("prefix", {"leave_out": [0]}, "leave_out is not supported yet: the layers of a sequence"),
        ("prefix", {"model_type": "qwen3"}, "AdapterHub's prefix tuning on this kind of model is not supported yet"),
        ("prefix", {"prefix_length": 0}, "prefix_length must be an integer"),
        ("ia3", {"r": 2}, "composition_mode='scale' goes with r=1 only"),
        ("multitask", {"task_specific_matrix_type": "linear"}, "task_specific_matrix_type='linear' is not supported"),
        ("multitask", {"weights_sharpness": 0.0}, "weights_sharpness must not be 0"),
        ("union", {"configs": []}, "a union's configs must be a list of 1 to 16 objects"),
        ("union", {"configs": ["lora"]}, "config must be an object, not 'lora'"),
        ("union", {"configs": [{"architecture": "union"}]}, "architecture='union' is not supported yet"),
        ("lora", {"name": ""}, "name must be the adapter's name"),
        ("lora", {"name": 3}, "name must be the adapter's name"),
        ("lora", {"model_type": "bert"}, "model_type must be one of llama, mistral, qwen2"),
    ],
)
def test_refusals(saved: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        parsed(saved, **changes)


def test_a_config_that_is_no_object() -> None:
    with pytest.raises(InvalidAdapter, match="config must be an object, not 'pfeiffer'"):
        parse_config({**SAVED["lora"], "config": "pfeiffer"})


JSON = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.lists(st.integers(), max_size=2)
)


@given(st.sampled_from(sorted(SAVED)), st.data())
@settings(max_examples=200, deadline=None)
def test_fuzzed_configurations_raise_nothing_else(saved: str, data: st.DataObject) -> None:
    own = SAVED[saved]["config"]
    changes = data.draw(st.dictionaries(st.sampled_from(sorted(own)), JSON, max_size=3))
    with contextlib.suppress(AdapterError):
        assert parse_adapterhub({**SAVED[saved], "config": own | changes}).parts
