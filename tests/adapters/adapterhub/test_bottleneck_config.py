import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftserve.adapters.adapterhub.bottleneck_config import ACTIVATIONS, BottleneckConfig, Form
from peftserve.adapters.errors import AdapterError, InvalidAdapter, UnsupportedAdapter
from peftserve.adapters.peft.config import AdapterHubConfig, parse_config
from peftserve.kernels.ops import formulas as ops

SAVED = json.loads((Path(__file__).parent / "fixture/llama/houlsby/adapter_config.json").read_text())


def parsed(*, model_type: Any = "llama", **changes: Any) -> Any:
    config = parse_config({**SAVED, "model_type": model_type, "config": SAVED["config"] | changes})
    assert isinstance(config, AdapterHubConfig)
    (part,) = config.hub.parts
    return part


def test_fields() -> None:
    config = parsed(reduction_factor={"1": 0.5, "default": 100}, leave_out=[3], scaling="learned")
    assert (config.form, config.attention, config.feed_forward) == (Form.OUTPUT, True, True)
    assert (config.activation, config.scaling, config.leave_out) == ("silu", "learned", (3,))
    assert [config.width(layer, 16) for layer in (0, 1)] == [1, 32]


def test_old_files_have_the_defaults_of_the_library() -> None:
    own = {"mh_adapter": False, "output_adapter": True, "reduction_factor": 16, "non_linearity": "ReLU"}
    config = parse_config({"config": own, "model_type": "gpt2", "name": "a"})
    assert isinstance(config, AdapterHubConfig)
    (part,) = config.hub.parts
    assert isinstance(part, BottleneckConfig)
    assert (part.form, part.activation, part.scaling) == (Form.OUTPUT, "relu", 1)


def test_every_activation_has_a_formula() -> None:
    assert set(ACTIVATIONS.values()) == ops.ACTIVATIONS.keys()


@pytest.mark.parametrize(
    ("before", "after", "residual", "form"),
    [
        (False, True, True, Form.OUTPUT),
        (False, True, False, Form.OUTPUT),
        (True, True, True, Form.SUM),
        (True, False, False, Form.SUM),
        (False, True, "post_add", None),
        (True, True, "post_add", None),
        (True, True, False, None),
        (True, False, True, None),
        (False, False, True, None),
    ],
)
def test_what_is_read(before: bool, after: bool, residual: bool | str, form: Form | None) -> None:
    options = {"original_ln_before": before, "original_ln_after": after, "residual_before_ln": residual}
    if form is None:
        with pytest.raises(UnsupportedAdapter, match="the residual stream would be lost or added twice"):
            parsed(**options)
    else:
        assert parsed(**options).form is form
    if after:
        assert parsed(**options, is_parallel=True).form is Form.RESIDUAL


def test_hooked_models_have_no_adapter_plus() -> None:
    with pytest.raises(UnsupportedAdapter, match="lost or added twice"):
        parsed(model_type="qwen2", original_ln_before=True, original_ln_after=False, residual_before_ln=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inv_adapter": "nice"}, "inv_adapter is not supported yet: invertible adapters"),
        ({"cross_adapter": True}, "cross_adapter is not supported yet"),
        ({"use_gating": True}, "use_gating is not supported yet: the gate is an average over the sequence"),
        ({"phm_layer": True}, "phm_layer is not supported yet: Compacter's"),
        ({"ln_before": True}, "ln_before is not supported yet: a norm inside"),
        ({"ln_after": True}, "ln_after is not supported yet: a norm inside"),
        ({"non_linearity": "laplace"}, "non_linearity='laplace' is not supported yet: served are relu, "),
        ({"news": 1}, "news is not supported yet"),
        ({"scaling": 0.0}, "scaling is 0"),
        ({"scaling": "mean"}, "scaling must be one of learned, channel"),
        ({"scaling": True}, "scaling must be a number"),
        ({"reduction_factor": 0}, "reduction_factor must be from"),
        ({"reduction_factor": -2}, "reduction_factor must be from"),
        ({"reduction_factor": {"default": 1e-300}}, "reduction_factor must be from"),
        ({"reduction_factor": None}, "reduction_factor must be from"),
        ({"non_linearity": None}, "non_linearity must be a name"),
        ({"residual_before_ln": "yes"}, "residual_before_ln must be true or false"),
        ({"leave_out": [-1]}, "leave_out must be an integer"),
        ({"mh_adapter": 1}, "mh_adapter must be true or false"),
        ({"model_type": "gemma2"}, "a bottleneck of AdapterHub on this kind of model is not supported yet"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError) as error:
        parsed(**changes)
    assert error.value.message.startswith(message)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


CHANGES = st.dictionaries(st.sampled_from(sorted(SAVED["config"])), JSON, max_size=4)


@given(CHANGES, st.sampled_from(["name", "model_type", "config"]), JSON)
@settings(max_examples=300, deadline=None)
def test_fuzzed_configurations_raise_nothing_else(changes: dict[str, Any], field: str, value: Any) -> None:
    with contextlib.suppress(AdapterError):
        config = parse_config({**SAVED, "config": SAVED["config"] | changes, field: value})
        assert isinstance(config, AdapterHubConfig)
        for part in config.hub.parts:
            with contextlib.suppress(InvalidAdapter):
                assert not isinstance(part, BottleneckConfig) or part.width(0, 4096) >= 1
