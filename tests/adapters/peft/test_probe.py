"""Methods that PEFT itself compiles, against the logits of PEFT loading the same checkpoint by itself."""

import importlib.util
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import (
    AdamssConfig,
    FrodConfig,
    PsoftConfig,
    TinyLoraConfig,
    UniLoraConfig,
    WaveFTConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from peftserve.adapters.errors import AdapterError, AdapterTooLarge, InvalidAdapter, UnsupportedAdapter
from peftserve.adapters.peft.compile import compile_adapter
from peftserve.adapters.peft.methods import METHODS
from peftserve.adapters.peft.probe_methods import PROBED
from peftserve.adapters.primitives import Bias, Dense, LowRank, Sparse

needs_sklearn = pytest.mark.skipif(
    importlib.util.find_spec("sklearn") is None, reason="PEFT needs scikit-learn for AdaMSS"
)
MODULES = {
    "llama": ["q_proj", "k_proj", "down_proj"],
    "llama_biased": ["q_proj", "v_proj", "up_proj"],
    "qwen2": ["k_proj", "o_proj", "up_proj"],
    "gpt2": ["c_attn", "mlp.c_proj"],
}


def louder(name: str, parameter: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return parameter + torch.randn(parameter.shape, generator=generator)


# name: PEFT's class, its options, the architectures, how to randomize (None: as usual), what it compiles to.
Case = tuple[type[Any], dict[str, Any], tuple[str, ...], Any, type[Any]]
ALL = ("llama", "qwen2", "gpt2")
CASES: dict[str, Case] = {
    "unilora": (UniLoraConfig, {"r": 4}, ALL, louder, LowRank),
    "unilora, indices": (UniLoraConfig, {"r": 2, "save_indices": True, "proj_seed": 3}, ("llama",), louder, LowRank),
    "unilora, theta": (UniLoraConfig, {"r": 3, "theta_d_length": 77, "proj_seed": 9}, ("llama",), louder, LowRank),
    "tinylora": (TinyLoraConfig, {}, ALL, None, LowRank),
    "tinylora, tied": (TinyLoraConfig, {"r": 4, "u": 5, "weight_tying": 0.7}, ("llama",), None, LowRank),
    "tinylora, projection": (TinyLoraConfig, {"save_projection": False, "projection_seed": 7}, ALL[:1], None, LowRank),
    "psoft": (PsoftConfig, {"r": 8}, ALL[:2], None, LowRank),
    "psoft, free": (PsoftConfig, {"r": 6, "psoft_orth": False, "ab_svd_init": "pissa_init"}, ("llama",), None, LowRank),
    "psoft, cayley": (
        PsoftConfig,
        {"r": 6, "use_cayley_neumann": True, "num_cayley_neumann_terms": 3, "cayley_neumann_eps": 0.5},
        ("llama",),
        None,
        LowRank,
    ),
    "psoft, sketched": (
        PsoftConfig,
        {"r": 5, "psoft_svd": "lowrank", "psoft_svd_lowrank_niter": 4, "random_seed": 3, "psoft_mag_a": False},
        ("llama",),
        None,
        LowRank,
    ),
    "psoft, alpha": (PsoftConfig, {"r": 4, "psoft_alpha": 16, "psoft_mag_b": False}, ("llama",), None, LowRank),
    "waveft": (WaveFTConfig, {"n_frequency": 30}, ALL, None, Sparse),
    "waveft, db4": (WaveFTConfig, {"n_frequency": 50, "wavelet_family": "db4"}, ("llama",), None, Dense),
    "waveft, plain": (
        WaveFTConfig,
        {"n_frequency": 70, "use_idwt": False, "random_loc_seed": 5, "scaling": 12.0},
        ("llama",),
        None,
        Sparse,
    ),
    "waveft, shares": (WaveFTConfig, {"n_frequency": 60, "proportional_parameters": True}, ALL[:1], None, Sparse),
    "waveft, pattern": (
        WaveFTConfig,
        {"n_frequency": 30, "n_frequency_pattern": {"0.self_attn.[qk]_proj": 20, "down_proj": 45}},
        ("llama",),
        None,
        Sparse,
    ),
    "frod": (FrodConfig, {}, ALL, None, Dense),
    "frod, drawn": (
        FrodConfig,
        {"save_projection": False, "sparse_rate": 0.1, "regularization_alpha": 0.01, "projection_prng_key": 4},
        ("llama",),
        None,
        Dense,
    ),
}
GRID = [
    pytest.param(architecture, *case, id=f"{name}-{architecture}")
    for name, (*head, architectures, randomize, kind) in CASES.items()
    for case in [(*head, randomize, kind)]
    for architecture in architectures
]


@pytest.mark.parametrize(("architecture", "config", "fields", "randomize", "kind"), GRID)
def test_as_peft_computes_it(
    architecture: str,
    config: type[Any],
    fields: dict[str, Any],
    randomize: Any,
    kind: type[Any],
    tiny_base: Callable[[str], Any],
    as_peft: Any,
    tmp_path: Path,
) -> None:
    bypass = _checked(architecture, config, fields, randomize, tiny_base, as_peft, tmp_path)
    assert kinds_of(bypass) == {kind}
    if "r" in fields and kind is LowRank:
        assert bypass.rank == fields["r"]


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2"])
def test_tinylora_on_the_vocabulary(
    architecture: str, tiny_base: Callable[[str], Any], as_peft: Any, tmp_path: Path
) -> None:
    made = TinyLoraConfig(target_modules=["embed_tokens", "lm_head", "v_proj"], r=3, u=8, weight_tying=0.5)
    bypass = as_peft(tiny_base(architecture), tmp_path, made, randomize=louder)
    assert kinds_of(bypass) == {LowRank}
    assert {"model.embed_tokens", "lm_head"} < bypass.sites.keys()


@needs_sklearn
@pytest.mark.parametrize(
    "fields",
    [
        {"r": 16},
        {"r": 24, "num_subspaces": 4, "subspace_rank": 3, "random_seed": 5},
        {"r": 12, "use_dynamic_rank": True},
    ],
)
@pytest.mark.parametrize("architecture", ["llama", "llama_biased", "qwen2"])
def test_adamss_as_peft_computes_it(
    architecture: str, fields: dict[str, Any], tiny_base: Callable[[str], Any], as_peft: Any, tmp_path: Path
) -> None:
    bypass = _checked(architecture, AdamssConfig, fields, None, tiny_base, as_peft, tmp_path)
    # The base's biases are a column of what PEFT decomposes, so its delta has a part for them.
    assert kinds_of(bypass) == ({LowRank} if architecture == "llama" else {LowRank, Bias})
    assert bypass.rank <= fields["r"]


def kinds_of(bypass: Any) -> set[type[Any]]:
    return {type(primitive) for primitives in bypass.sites.values() for primitive in primitives}


def _checked(
    architecture: str,
    config: type[Any],
    fields: dict[str, Any],
    randomize: Any,
    tiny_base: Callable[[str], Any],
    as_peft: Any,
    folder: Path,
) -> Any:
    known = config.__dataclass_fields__
    transposed = {"fan_in_fan_out": True} if architecture == "gpt2" and "fan_in_fan_out" in known else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what saves space
        made = config(target_modules=MODULES[architecture], **transposed, **fields)
    options = {} if randomize is None else {"randomize": randomize}
    return as_peft(tiny_base(architecture), folder, made, **options)


def _written(
    config: type[Any], llama: Any, oracle: ModuleType, folder: Path, **fields: Any
) -> tuple[Path, dict[str, torch.Tensor], dict[str, Any]]:
    """An adapter on two modules: its folder, its tensors, its configuration."""
    options = {"target_modules": ["0.self_attn.q_proj", "1.mlp.down_proj"], **fields}
    oracle.method_adapter(llama.folder, folder, config(**options))
    return (
        folder,
        load_file(folder / "adapter_model.safetensors"),
        json.loads((folder / "adapter_config.json").read_text()),
    )


def _refused(llama: Any, folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> AdapterError:
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterError) as caught:
        compile_adapter(folder, llama.table, torch.float32, model=llama.model)
    return caught.value


TINY: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "UNILORA": (UniLoraConfig, {"r": 2, "save_indices": True}),
    "TINYLORA": (TinyLoraConfig, {"r": 2, "u": 4}),
    "PSOFT": (PsoftConfig, {"r": 4}),
    "WAVEFT": (WaveFTConfig, {"n_frequency": 30}),
    "FROD": (FrodConfig, {}),
}


@pytest.mark.parametrize("method", TINY)
def test_nothing_of_the_base_or_of_the_process_changes(
    method: str, llama: Any, oracle: ModuleType, tmp_path: Path
) -> None:
    config, fields = TINY[method]
    folder, _, _ = _written(config, llama, oracle, tmp_path, **fields)
    parameters = dict(llama.model.named_parameters())
    before = {name: (parameter.clone(), parameter._version) for name, parameter in parameters.items()}
    trained = {name: parameter.requires_grad for name, parameter in parameters.items()}
    random, filters = torch.random.get_rng_state(), list(warnings.filters)
    compile_adapter(folder, llama.table, torch.float32, model=llama.model)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert warnings.filters == filters
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() is torch.float32
    for name, parameter in llama.model.named_parameters():
        assert parameter is parameters[name]
        assert torch.equal(parameter, before[name][0])
        assert parameter._version == before[name][1]
        assert parameter.requires_grad == trained[name]


@pytest.mark.parametrize("method", TINY)
def test_every_tensor_is_wanted_and_none_is_left(method: str, llama: Any, oracle: ModuleType, tmp_path: Path) -> None:
    config, fields = TINY[method]
    folder, tensors, raw = _written(config, llama, oracle, tmp_path, **fields)
    key = next(key for key in tensors if "v_tensor" not in key)
    missing = {name: tensor for name, tensor in tensors.items() if name != key}
    error = _refused(llama, folder, missing, raw)
    assert key in error.message
    left = _refused(llama, folder, {**tensors, "base_model.model.model.norm.lost": torch.ones(2)}, raw)
    assert "norm.lost" in left.message
    longer = _refused(llama, folder, {**tensors, key: torch.ones(len(tensors[key]) + 1)}, raw)
    assert key.rpartition(".")[2] in longer.message
    broken = {k: t.clone().fill_(torch.nan) if t.is_floating_point() else t for k, t in tensors.items()}
    assert "NaN or infinity" in _refused(llama, folder, broken, raw).message
    assert "nowhere" in _refused(llama, folder, tensors, {**raw, "target_modules": ["nowhere"]}).message


REFUSED: list[tuple[str, dict[str, Any], type[AdapterError], str]] = [
    ("UNILORA", {"r": 0}, InvalidAdapter, "r"),
    ("UNILORA", {"r": 513}, AdapterTooLarge, "rank 513 is over"),
    ("UNILORA", {"r": "4"}, InvalidAdapter, "r must be an integer"),
    ("UNILORA", {"theta_d_length": 1 << 23}, InvalidAdapter, "theta_d_length is 8388608"),
    ("TINYLORA", {"r": 512, "u": 1 << 20}, AdapterTooLarge, "have PEFT draw"),
    ("TINYLORA", {"u": 1 << 40}, InvalidAdapter, "at most"),
    ("TINYLORA", {"weight_tying": "all"}, InvalidAdapter, "weight_tying must be a number"),
    ("TINYLORA", {"u": 5}, InvalidAdapter, "has the shape"),
    ("PSOFT", {"num_cayley_neumann_terms": 10**9, "use_cayley_neumann": True}, InvalidAdapter, "at most 1000"),
    ("PSOFT", {"ab_svd_init": ["a"]}, InvalidAdapter, "PEFT cannot load it"),
    ("PSOFT", {"psoft_svd": "magic"}, InvalidAdapter, "psoft_svd"),
    ("PSOFT", {"r": 65}, InvalidAdapter, "less than or equal"),
    ("WAVEFT", {"n_frequency": 64 * 96 + 1}, InvalidAdapter, "n_frequency"),
    ("WAVEFT", {"wavelet_family": "sine"}, InvalidAdapter, "sine"),
    ("WAVEFT", {"n_frequency_pattern": {"(a+)+$": 0}}, InvalidAdapter, "n_frequency_pattern"),
    ("WAVEFT", {"scaling": 1e31}, InvalidAdapter, "scaling must be a number"),
    ("FROD", {"sparse_rate": 1.5}, InvalidAdapter, "sparse_rate"),
    ("FROD", {"projection_prng_key": -1}, InvalidAdapter, "projection_prng_key must be an integer"),
]


@pytest.mark.parametrize(("method", "fields", "kind", "message"), REFUSED)
def test_absurd_configurations_are_refused(
    method: str,
    fields: dict[str, Any],
    kind: type[AdapterError],
    message: str,
    llama: Any,
    oracle: ModuleType,
    tmp_path: Path,
) -> None:
    config, options = TINY[method]
    folder, tensors, raw = _written(config, llama, oracle, tmp_path, **options)
    error = _refused(llama, folder, tensors, {**raw, **fields})
    assert isinstance(error, kind)
    assert message in error.message


def test_indices_are_within_the_vector(llama: Any, oracle: ModuleType, tmp_path: Path) -> None:
    folder, tensors, raw = _written(UniLoraConfig, llama, oracle, tmp_path, r=2, save_indices=True)
    wild = {key: tensor + 1000 if "indices" in key else tensor for key, tensor in tensors.items()}
    assert isinstance(_refused(llama, folder, wild, raw), InvalidAdapter)


@pytest.mark.parametrize(
    ("method", "package", "remedy"), [("PSOFT", "peft", "peftserve[peft]"), ("ADAMSS", "sklearn", "scikit-learn")]
)
def test_a_package_that_is_missing_is_named(
    method: str, package: str, remedy: str, llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else found(name))
    raw = {"peft_type": method, "target_modules": ["q_proj"]}
    error = _refused(llama, tmp_path, {"base_model.model.x": torch.ones(1)}, raw)
    assert isinstance(error, UnsupportedAdapter)
    assert f"pip install '{remedy}'" in error.message


@pytest.mark.parametrize("method", ["PSOFT", "FROD"])
def test_methods_that_read_the_base_need_it(method: str, llama: Any, oracle: ModuleType, tmp_path: Path) -> None:
    config, fields = TINY[method]
    folder, _, _ = _written(config, llama, oracle, tmp_path, **fields)
    with pytest.raises(UnsupportedAdapter, match="needs the base's weight"):
        compile_adapter(folder, llama.table, torch.float32)


@pytest.mark.parametrize("method", ["UNILORA", "TINYLORA", "WAVEFT"])
def test_the_others_do_not(method: str, llama: Any, oracle: ModuleType, tmp_path: Path) -> None:
    config, fields = TINY[method]
    folder, _, _ = _written(config, llama, oracle, tmp_path, **fields)
    bypass = compile_adapter(folder, llama.table, torch.float32).bypass
    beside = compile_adapter(folder, llama.table, torch.float32, model=llama.model).bypass
    for name, (primitive,) in beside.sites.items():
        (other,) = bypass.sites[name]
        assert all(torch.equal(tensor, other.tensors()[field]) for field, tensor in primitive.tensors().items())


def test_psoft_is_for_linear_layers(tiny_base: Callable[[str], Any], tmp_path: Path) -> None:
    raw = {"peft_type": "PSOFT", "target_modules": ["c_attn"]}
    error = _refused(tiny_base("gpt2"), tmp_path, {"base_model.model.x": torch.ones(1)}, raw)
    assert "not for Conv1D" in error.message


@pytest.mark.parametrize("method", PROBED)
def test_fields_that_are_read_are_the_ones_that_are_passed_on(method: str) -> None:
    probed = PROBED[method]
    passed = {*probed.integers, *probed.numbers.split(), *probed.flags.split(), *probed.words.split()}
    patterns = {"n_frequency_pattern"} if method == "WAVEFT" else set()
    assert passed | patterns == set(METHODS[method].reads.split())


def test_it_may_be_asked_for_in_inference_mode(llama: Any, oracle: ModuleType, tmp_path: Path) -> None:
    for method, (config, fields) in TINY.items():
        folder, _, _ = _written(config, llama, oracle, tmp_path / method, **fields)
        with torch.inference_mode():
            bypass = compile_adapter(folder, llama.table, torch.float32, model=llama.model).bypass
            assert torch.is_inference_mode_enabled()
        assert bypass.method == method


def test_frod_takes_the_checkpoint_s_basis_whole(llama: Any, oracle: ModuleType, tmp_path: Path) -> None:
    """PEFT's own decomposition may come out otherwise here than where the adapter was trained."""
    folder, tensors, _ = _written(FrodConfig, llama, oracle, tmp_path, progressbar=False)
    deltas = []
    for sign in (1, -1):  # of some vectors of the basis, which is the same map
        for key, tensor in tensors.items():
            if "lambda_s_values" in key:
                tensor.zero_()
            if "frod_V" in key:
                tensor[:, ::3] *= sign
        save_file(tensors, folder / "adapter_model.safetensors")
        bypass = compile_adapter(folder, llama.table, torch.float32, model=llama.model).bypass
        (delta,) = bypass.sites["model.layers.0.self_attn.q_proj"]
        assert isinstance(delta, Dense)
        deltas.append(delta.w)
    torch.testing.assert_close(*deltas, rtol=1e-4, atol=1e-4)
    assert deltas[0].abs().max() > 0.01


@pytest.mark.parametrize("saved", [True, False])
def test_frod_has_peft_s_factors_in_16_bit(saved: bool, llama: Any, tmp_path: Path, oracle: ModuleType) -> None:
    """Its U is that of a rounded V, and takes the place of the base's weight: other factors would be another model."""

    def base(dtype: torch.dtype) -> Any:
        loaded = AutoModelForCausalLM.from_pretrained(llama.folder, dtype=torch.bfloat16, attn_implementation="eager")
        return loaded.to(dtype).eval()

    config = FrodConfig(target_modules=["q_proj", "down_proj"], progressbar=False, save_projection=saved)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        trained = get_peft_model(base(torch.bfloat16), config)
        generator = torch.Generator().manual_seed(0)
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.mul_(1 + 0.1 * torch.randn(parameter.shape, generator=generator))
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        trained.save_pretrained(tmp_path)
    ids = [5, 17, 42, 99, 7]
    with torch.inference_mode():
        wanted = trained.to(torch.bfloat16).float().eval()(torch.tensor([ids])).logits[0]
        bare = base(torch.float32)(torch.tensor([ids])).logits[0]
    bypass = compile_adapter(tmp_path, llama.table, torch.float32, model=base(torch.bfloat16)).bypass
    got = oracle.naive_logits(base(torch.float32), bypass, ids)
    assert (wanted - bare).abs().max() > 0.5
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=5e-3)
