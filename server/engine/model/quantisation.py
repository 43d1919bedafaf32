"""How the base's weights are loaded: as its checkpoint has them, or quantised on the way.

What a form of quantisation is computed by is a package's and transformers' business; here are the names of forms, what
they need, and what is said where something is missing.
"""

import json
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedConfig, TorchAoConfig
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AutoQuantizationConfig
from transformers.utils.quantization_config import QuantizationConfigMixin

from peftserve.adapters.peft.listing import listed

from .errors import UnservableModel, reason_of

Config = QuantizationConfigMixin
MakeConfig = Callable[[torch.dtype], Config]

# By method: the packages on an index. What they are imported as follows, where that is another name.
_PACKAGES: Mapping[str, tuple[str, ...]] = {
    "aqlm": ("aqlm", "accelerate"),
    "auto-round": ("auto-round",),
    "awq": ("gptqmodel", "accelerate"),
    "bitnet": ("accelerate",),
    "bitsandbytes": ("bitsandbytes", "accelerate"),
    "compressed-tensors": ("compressed-tensors", "accelerate"),
    "eetq": ("kernels", "accelerate"),
    "fbgemm_fp8": ("fbgemm-gpu", "accelerate"),
    "fouroversix": ("fouroversix",),
    "fp8": ("accelerate",),
    "fp_quant": ("fp-quant",),
    "gguf": ("accelerate",),  # and for most architectures `gguf`, which is asked for where one of these is read
    "gptq": ("gptqmodel", "optimum"),
    "higgs": ("flute-kernel", "accelerate"),
    "hqq": ("hqq",),
    "mxfp4": ("accelerate",),
    "mxfp8": ("accelerate",),
    "quanto": ("optimum-quanto", "accelerate"),
    "quark": ("amd-quark",),
    "sinq": ("sinq",),
    "spqr": ("spqr_quant", "accelerate"),
    "torchao": ("torchao",),
    "vptq": ("vptq", "accelerate"),
}
_ON_A_GPU = frozenset({"eetq", "fbgemm_fp8", "fouroversix", "fp_quant", "higgs", "nvfp4", "spqr", "vptq"})
_IMPORTED: Mapping[str, str] = {
    "amd-quark": "quark",
    "flute-kernel": "flute",
    "optimum-quanto": "optimum.quanto",
}
GGUF, BITSANDBYTES = "gguf", "bitsandbytes"
_LAYS_OUT = "support_avx512bf16_for_cpu"  # an attribute of a Linear4bit
# Kernels that vLLM's users name with the method: which one runs is not asked of them here.
_KERNELS = ("_marlin", "_bitblas")


def how_to_load(
    asked: str | None, config: PreTrainedConfig, dtype: torch.dtype, device: torch.device, *, is_gguf: bool = False
) -> dict[str, Any]:
    """Return what `from_pretrained` is to be told of quantisation; nothing for a plain base that stays plain.

    asked: a form's name, a quantization_config in JSON, or None for what the checkpoint says. dtype: of activations.
    is_gguf: whether the checkpoint is a GGUF file.
    Raises UnservableModel for a form that is unknown or not the checkpoint's own, and for want of a package or a GPU.
    """
    own, wanted = GGUF if is_gguf else method_of(config), None
    if asked is not None and not (own and _is_own(asked, own)):
        if own:
            raise UnservableModel(f"its checkpoint is quantised already ({own}): leave out --quantization {asked}")
        wanted = _config(asked, dtype)
    method = own or (wanted and _name(wanted.quant_method))
    if not method:
        return {}
    what = f"--quantization {asked}" if wanted else f"a checkpoint that is quantised by {method}"
    if method not in AUTO_QUANTIZATION_CONFIG_MAPPING and method != BITSANDBYTES:
        raise UnservableModel(f"{what} has a form of numbers that this version of transformers does not know")
    if method in _ON_A_GPU and device.type == "cpu":
        raise UnservableModel(f"{what} needs a GPU: transformers multiplies by such weights on no CPU")
    require_packages(method, what)
    placed = {"device_map": {"": device}} if find_spec("accelerate") else {}  # else on the CPU, and moved as a whole
    wanted = _multiplied_out() if is_gguf else wanted
    return placed | ({"quantization_config": wanted} if wanted else {})


def keep_as_loaded(model: nn.Module) -> None:
    """Keep the codes of 4-bit linears as they were loaded.

    On processors with bfloat16 products, the first pass of bitsandbytes lays the codes out anew in place, for a kernel
    that rounds to bfloat16 whatever the activations are and fails where a row is no whole number of blocks. Whoever
    multiplies the codes out later, as for the norms of a DoRA, would read them in the wrong order.
    """
    for module in model.modules():
        if hasattr(module, _LAYS_OUT):
            setattr(module, _LAYS_OUT, False)


def method_of(config: PreTrainedConfig) -> str:
    """Return the method by which a checkpoint is quantised, as transformers names it; empty for a plain one."""
    own = getattr(config, "quantization_config", None)
    if own is None:
        own = getattr(config.get_text_config(), "quantization_config", None)
    return _name(own.get("quant_method", "") if isinstance(own, dict) else getattr(own, "quant_method", ""))


def require_packages(method: str, what: str) -> None:
    """Raise UnservableModel that names the packages which a method needs and which are not installed.

    what: needs them, for the message.
    """
    missing = [name for name in _PACKAGES.get(method, ()) if not _is_installed(name)]
    if missing:
        raise UnservableModel(f"{what} needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def _is_installed(package: str) -> bool:
    top, _, _ = (imported := _IMPORTED.get(package, package.replace("-", "_"))).partition(".")
    return find_spec(top) is not None and find_spec(imported) is not None


def _is_own(asked: str, own: str) -> bool:
    """Return whether a form names the method by which the checkpoint is quantised anyway."""
    for kernel in _KERNELS:
        asked = asked.removesuffix(kernel)
    return asked.replace("_", "-") == own.replace("_", "-")


def _config(asked: str, dtype: torch.dtype) -> Config:
    """Return the configuration of a form that is named, or given as JSON as a config.json has it."""
    try:
        if asked.lstrip().startswith("{"):
            return AutoQuantizationConfig.from_dict(json.loads(asked))  # type: ignore[no-any-return]
        if asked not in FORMS:
            raise ValueError(f"there are {listed(sorted(FORMS))}, or a quantization_config as JSON")
        package, make = FORMS[asked]
        require_packages(package, f"--quantization {asked}")
        return make(dtype)
    except (ValueError, TypeError, KeyError) as error:
        raise UnservableModel(f"it cannot be loaded by --quantization {asked}: {reason_of(error)}") from error
    except ImportError as error:
        raise UnservableModel(f"--quantization {asked} needs a package: {error}") from error


def _multiplied_out() -> Config | None:
    """Return what makes transformers multiply GGUF's blocks out on every device; None where it knows no other way."""
    kind = getattr(import_module("transformers"), "GgufConfig", None)
    return None if kind is None else kind(dequantize=True)


def _name(method: Any) -> str:
    return str(getattr(method, "value", method) or "")


def _nf4(dtype: torch.dtype) -> Config:
    """Return QLoRA's form (Dettmers et al. 2023): 4-bit normal floats, their scales quantised too."""
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def _llm_int8(_: torch.dtype) -> Config:
    """Return LLM.int8() (Dettmers et al. 2022), which is `load_in_8bit`."""
    return BitsAndBytesConfig(load_in_8bit=True)


def _float8(_: torch.dtype) -> Config:
    """Return weights in float8 with a scale for each row, multiplied by activations as they are."""
    return TorchAoConfig(import_module("torchao.quantization").Float8WeightOnlyConfig())


FORMS: Mapping[str, tuple[str, MakeConfig]] = {
    "bitsandbytes": ("bitsandbytes", _nf4),
    "bnb-4bit": ("bitsandbytes", _nf4),
    "bnb-8bit": ("bitsandbytes", _llm_int8),
    "fp8": ("torchao", _float8),
    "int8": ("bitsandbytes", _llm_int8),
}
