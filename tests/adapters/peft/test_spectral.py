"""FourierFT and C3A against PEFT, and what of them is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import C3AConfig, FourierFTConfig

from peftserve.adapters.bypass import Bypass
from peftserve.adapters.errors import AdapterError
from peftserve.adapters.peft.compile import compile_adapter
from peftserve.adapters.primitives import Circulant, LowRank, Spectral

AsPeft = Callable[..., Bypass]
TARGETS = {"phi3": ["qkv_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}
LINEAR_ONLY = ["llama", "llama_biased", "qwen2", "gemma2", "phi3"]


def targets(architecture: str) -> list[str]:
    return TARGETS.get(architecture, ["q_proj", "v_proj", "down_proj"])


def loud(name: str, parameter: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return parameter + 2 * torch.randn(parameter.shape, generator=generator)


def kinds(bypass: Bypass) -> set[type]:
    return {type(p) for primitives in bypass.sites.values() for p in primitives}


@pytest.mark.parametrize("architecture", [*LINEAR_ONLY, "gpt2"])
@pytest.mark.parametrize("count", [9, 1000])
def test_fourierft(count: int, architecture: str, tiny_base: Any, as_peft: AsPeft, tmp_path: Path) -> None:
    config = FourierFTConfig(
        target_modules=targets(architecture), n_frequency=count, fan_in_fan_out=architecture == "gpt2"
    )

    def as_loud(name: str, parameter: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """However many there are: a thousand as loud as nine make the model amplify what the last digits differ by."""
        return loud(name, parameter, generator) * (9 / count) ** 0.5

    assert kinds(as_peft(tiny_base(architecture), tmp_path, config, randomize=as_loud)) == {
        LowRank if count == 9 else Spectral
    }


def test_fields_of_fourierft(llama: Any, as_peft: AsPeft, tmp_path: Path) -> None:
    config = FourierFTConfig(
        target_modules=["q_proj", "v_proj", "down_proj", "lm_head"],
        n_frequency=8,
        scaling=-70.0,
        random_loc_seed=5,
        n_frequency_pattern={"q_proj|v_proj": 5, r"layers\.1\.mlp.*": 3, "lm_head": 12},
    )
    bypass = as_peft(llama, tmp_path, config, randomize=loud)
    ranks = {name: p.rank // 2 for name, (p,) in bypass.sites.items() if isinstance(p, LowRank)}
    assert ranks["model.layers.0.mlp.down_proj"] == 8
    assert ranks["model.layers.1.mlp.down_proj"] == 3
    assert ranks["lm_head"] == 12


def test_waves_survive_half_precision(llama: Any, as_peft: AsPeft, tmp_path: Path) -> None:
    wanted = as_peft(llama, tmp_path, FourierFTConfig(target_modules=["q_proj"], n_frequency=9), randomize=loud)
    found = compile_adapter(tmp_path, llama.table, torch.float16).bypass
    for name, (primitive,) in wanted.sites.items():
        delta = primitive.tensors()["b"] @ primitive.tensors()["a"]
        half = found.sites[name][0].tensors()
        torch.testing.assert_close(half["b"].float() @ half["a"].float(), delta, rtol=0.01, atol=1e-3)


@pytest.mark.parametrize("architecture", LINEAR_ONLY)
def test_c3a(architecture: str, tiny_base: Any, as_peft: AsPeft, tmp_path: Path) -> None:
    config = C3AConfig(target_modules=targets(architecture), block_size=16, block_size_pattern={"down_proj": 8})
    assert kinds(as_peft(tiny_base(architecture), tmp_path, config, randomize=loud)) == {Circulant}


FOURIER = FourierFTConfig(target_modules=["q_proj"], n_frequency=20)
C3A = C3AConfig(target_modules=["q_proj"], block_size=16)


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (FOURIER, {"n_frequency": 0}, "n_frequency must be an integer of at least 1"),
        (FOURIER, {"n_frequency": 10**12}, "more than the 4096 frequencies"),
        (FOURIER, {"n_frequency": 8}, "fourierft_spectrum has the shape"),
        (FOURIER, {"random_loc_seed": 1 << 70}, "random_loc_seed must be an integer of at most"),
        (FOURIER, {"random_loc_seed": -(1 << 70)}, "random_loc_seed must be an integer"),
        (FOURIER, {"scaling": 1e300}, "scaling must be a number"),
        (FOURIER, {"n_frequency_pattern": {"(": 3}}, "is not a valid regular expression"),
        (C3A, {"block_size": 0}, "block_size must be an integer of at least 1"),
        (C3A, {"block_size": 24}, "does not divide the widths"),
        (C3A, {"block_size": 32}, "c3a_kernel has the shape"),
    ],
)
def test_refusals(config: Any, fields: dict[str, Any], message: str, llama: Any, oracle: Any, tmp_path: Path) -> None:
    oracle.method_adapter(llama.folder, tmp_path, config)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(AdapterError, match=message):
        compile_adapter(tmp_path, llama.table, torch.float32, model=llama.model)


@pytest.mark.parametrize("config", [FOURIER, C3A])
def test_neither_is_a_delta_of_full_size(config: Any, llama: Any, oracle: Any, tmp_path: Path) -> None:
    oracle.method_adapter(llama.folder, tmp_path, config)
    bypass = compile_adapter(tmp_path, llama.table, torch.float32, max_dense_delta=0).bypass
    assert kinds(bypass) <= {Spectral, Circulant}


def test_frequencies_keep_their_digits_in_half_precision(llama: Any, as_peft: AsPeft, tmp_path: Path) -> None:
    config = FourierFTConfig(target_modules=["q_proj", "o_proj"], n_frequency=200)
    wanted = as_peft(llama, tmp_path, config, randomize=loud)
    found = compile_adapter(tmp_path, llama.table, torch.float16).bypass
    for name, (primitive,) in wanted.sites.items():
        (half,) = found.sites[name]
        assert isinstance(primitive, Spectral)
        assert isinstance(half, Spectral)
        torch.testing.assert_close(half.values.float(), primitive.values, rtol=1e-3, atol=1e-5)
        assert half.num_bytes == 2 * 200
    assert len({id(p.columns) for ps in found.sites.values() for p in ps if isinstance(p, Spectral)}) == 1
