"""Quantised bases in the forms that packages have, without a package: float8 codes with a scale for each row.

    class    linears of a class of their own, that multiply codes and scales out in each product, as bitsandbytes' do
    tensor   plain linears over a class of tensors that computes in its own way, as torchao's
    hook     codes that a hook multiplies out in the first pass, linears with a `forward` of their own, as
             compressed-tensors' do
    inputs   the same as "class", with inputs rounded to float8 too, as "dynamic" checkpoints have it
    mixing   the same as "inputs", with one scale for all rows of a call

`quantised_model` writes such a checkpoint, which transformers then loads as any other, and the plain one that it means.
"""

import json
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

QUANT_METHOD = "codes-and-scales"
QUANTISED_FORMS = ("class", "tensor", "hook", "inputs", "mixing")
_CODES = torch.float8_e4m3fn


def quantised_model(plain: Path, folder: Path, form: str) -> tuple[Path, Path]:
    """Write a quantised model and a plain one with the same numbers, and return their folders.

    plain: the folder of the float32 model to quantise.
    """
    quantised, meant = folder / "quantised", folder / "meant"
    weights = load_file(plain / "model.safetensors")
    codes, numbers = dict(weights), dict(weights)
    for key in [key for key in weights if key.endswith("_proj.weight")]:
        scale = weights[key].abs().amax(1, keepdim=True) / torch.finfo(_CODES).max
        codes[key] = (weights[key] / scale).to(_CODES)
        codes[f"{key}_scale"], numbers[key] = scale, codes[key].float() * scale
    config = json.loads((plain / "config.json").read_text())
    _write(plain, quantised, codes, config | {"quantization_config": {"quant_method": QUANT_METHOD, "form": form}})
    _write(plain, meant, numbers, config)
    return quantised, meant


def _write(plain: Path, folder: Path, weights: Mapping[str, torch.Tensor], config: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    for file in plain.glob("*token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "config.json").write_text(json.dumps(config))
    save_file(dict(weights), folder / "model.safetensors", {"format": "pt"})


class CodesLinear(nn.Linear):
    """y = x (codes · scales)ᵀ + b"""

    shares_scale: bool | None = None  # of the inputs: one for all rows, one for each, or no rounding

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight = nn.Parameter(self.weight.to(_CODES), requires_grad=False)
        self.weight_scale = nn.Parameter(torch.empty(self.out_features, 1, device="meta"), requires_grad=False)

    def numbers(self) -> torch.Tensor:
        return self.weight.to(self.weight_scale.dtype) * self.weight_scale

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        x = input if self.shares_scale is None else _rounded(input, None if self.shares_scale else -1)
        return F.linear(x, self.numbers(), self.bias)


class RoundingLinear(CodesLinear):
    shares_scale = False


class MixingLinear(CodesLinear):
    shares_scale = True


class CodesTensor(torch.Tensor):
    """A tensor with the type and shape of the numbers that its codes stand for. All one can do is to multiply by it."""

    codes: torch.Tensor
    scale: torch.Tensor

    @staticmethod
    def of(codes: torch.Tensor, scale: torch.Tensor) -> "CodesTensor":
        made: CodesTensor = torch.Tensor._make_subclass(CodesTensor, torch.zeros(1).expand(codes.shape))
        made.codes, made.scale = codes, scale
        return made

    def dequantize(self) -> torch.Tensor:
        return self.codes.to(self.scale.dtype) * self.scale

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.linear:
            x, weight, *bias = args
            return F.linear(x, weight.dequantize(), *bias, **(kwargs or {}))
        if getattr(func, "__name__", "") in ("cat", "detach", "clone"):
            raise NotImplementedError(f"{func} of codes")
        return super().__torch_function__(func, types, args, kwargs or {})


def _rounded(x: torch.Tensor, over: int | None) -> torch.Tensor:
    scale = x.abs().amax(over, keepdim=True).clamp(min=1e-12) / torch.finfo(_CODES).max
    return (x / scale).to(_CODES).to(x.dtype) * scale


def _own_forward(self: nn.Linear, input: torch.Tensor) -> torch.Tensor:
    return F.linear(input, self.weight, self.bias)


@register_quantization_config(QUANT_METHOD)
class _Config(QuantizationConfigMixin):
    def __init__(self, form: str = "class", **_: Any) -> None:
        self.quant_method = QUANT_METHOD  # type: ignore[assignment]
        self.form = form


@register_quantizer(QUANT_METHOD)
class _Quantizer(HfQuantizer):
    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        forms = {"inputs": RoundingLinear, "mixing": MixingLinear}
        made = forms.get(self.quantization_config.form, CodesLinear)  # type: ignore[attr-defined]
        for name, module in list(model.named_modules()):
            if name.endswith("_proj"):
                assert isinstance(module, nn.Linear)
                model.set_submodule(name, made(module))
        return model

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        form = self.quantization_config.form  # type: ignore[attr-defined]
        linears = [module for module in model.modules() if isinstance(module, CodesLinear)]
        if form == "tensor":
            for linear in linears:
                linear.__class__ = nn.Linear  # type: ignore[assignment]
                linear._parameters["weight"] = CodesTensor.of(linear.weight, linear._parameters.pop("weight_scale"))  # type: ignore[assignment, arg-type]
        if form == "hook":
            self._multiply_out_at_first_pass(model, linears)
        return model

    def _multiply_out_at_first_pass(self, model: PreTrainedModel, linears: list[CodesLinear]) -> None:
        for linear in linears:
            linear.forward = types.MethodType(_own_forward, linear)  # type: ignore[method-assign]

        def multiply_out(module: nn.Module, args: Any) -> None:
            handle.remove()
            for linear in linears:
                linear.weight = nn.Parameter(linear.numbers(), requires_grad=False)
                linear.__class__ = nn.Linear  # type: ignore[assignment]

        handle = model.register_forward_pre_hook(multiply_out)

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False
