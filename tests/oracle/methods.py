"""Adapters of every PEFT method, written by PEFT with random weights, and what our compilers make of them.

`naive_logits` serves one adapter by the primitives' formulas alone, through hooks on a plain model: no engine, no
pages, no batch.
"""

import copy
import dataclasses
import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from peft import ArrowConfig, LoraConfig, PeftConfig, PeftModel, create_arrow_model, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from peftserve.adapters.bypass import Bypass, SideAttention
from peftserve.adapters.primitives import Primitive, Replacement
from peftserve.kernels.ops.formulas import Op, Stage, chained

from .models import read_model
from .reference import Greedy

Randomize = Callable[[str, torch.Tensor, torch.Generator], torch.Tensor]


def plain_model(folder: Path) -> PreTrainedModel:
    """Return a copy of the base in a folder, in float32 on the CPU, for the caller to change."""
    return copy.deepcopy(_read_model(folder))


@lru_cache(maxsize=8)
def _read_model(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = read_model(folder)
    return model.requires_grad_(False)


def shaken(name: str, parameter: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Add noise to a parameter: as large as its standard deviation, or 0.2 where that is 0."""
    noise = torch.randn(parameter.shape, generator=generator)
    spread = parameter.float().std().item() if parameter.numel() > 1 else 0.0
    return parameter + noise * (spread if spread > 1e-3 else 0.2)


def method_adapter(
    model_folder: Path, folder: Path, config: PeftConfig, seed: int = 0, randomize: Randomize = shaken, **save: Any
) -> Path:
    """Write a checkpoint of `config` with PEFT, each trainable parameter drawn by `randomize`. Returns its folder."""
    if getattr(config, "arrow_config", None):
        return _arrow_adapter(model_folder, folder, config, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = get_peft_model(plain_model(model_folder), config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and parameter.is_floating_point():
                    parameter.copy_(randomize(name, parameter, generator))
        model.save_pretrained(folder, **save)
    return folder


def _arrow_adapter(model_folder: Path, folder: Path, config: Any, seed: int) -> Path:
    """Write four experts, two general ones if the configuration wants any, and the router that PEFT makes of them."""
    options = {"r": config.r, "target_modules": config.target_modules, "fan_in_fan_out": config.fan_in_fan_out}
    names = ["task_0", "task_1", "task_2", "task_3", *(["gks_0", "gks_1"] if config.arrow_config.use_gks else [])]
    for i, name in enumerate(names):
        expert = LoraConfig(task_type="CAUSAL_LM", lora_alpha=4 + i, **options)
        method_adapter(model_folder, folder / name, expert, seed + i)
    saved = folder / "saved"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = _arrow_model(model_folder, folder, config.arrow_config)
        model.save_pretrained(saved, selected_adapters=["arrow_router"])
    for file in (saved / "arrow_router").iterdir():
        file.rename(folder / file.name)
    shutil.rmtree(saved)
    return folder


def _arrow_model(model_folder: Path, adapter: Path, config: ArrowConfig) -> Any:
    """Make Arrow's router anew: PEFT cannot load the one that it saves, but makes the same one of the same experts."""
    tasks, general = ([str(path) for path in sorted(adapter.glob(names))] for names in ("task_*", "gks_*"))
    return create_arrow_model(plain_model(model_folder), tasks, config, general)


def peft_model(model_folder: Path, adapter: Path, device: str = "cpu") -> Any:
    """Load an adapter with PEFT, in eval mode on the CPU. device: where the base is while PEFT loads the adapter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if arrow := json.loads((adapter / "adapter_config.json").read_text()).get("arrow_config"):
            names = ("top_k", "router_temperature", "use_gks", "rng_seed")
            return _arrow_model(model_folder, adapter, ArrowConfig(**{name: arrow[name] for name in names})).eval()
        return PeftModel.from_pretrained(plain_model(model_folder).to(device), adapter).eval().cpu()


@torch.inference_mode()
def peft_logits(model_folder: Path, adapter: Path, ids: list[int], **inputs: Any) -> torch.Tensor:
    """Return PEFT's logits of a prompt, of shape (tokens, vocabulary), without rows of virtual tokens.

    inputs: what else the method takes, such as `task_ids`.
    """
    model = peft_model(model_folder, adapter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logits = model(torch.tensor([ids]), **inputs).logits[0]
    return logits[-len(ids) :]


@torch.inference_mode()
def peft_generate(model: Any, prompt: list[int], max_tokens: int, task: int | None = None) -> Greedy:
    """Run a model's own `generate`, greedily, for exactly `max_tokens` tokens: an end of sequence does not end it."""
    model.generation_config.eos_token_id = None
    ids = torch.tensor([prompt])
    inputs = {} if task is None else {"task_ids": torch.tensor([task])}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_tokens,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
            **inputs,
        )
    logits = torch.cat(out.logits).float()
    best, tokens = logits.topk(2, dim=-1)
    logprobs = logits.log_softmax(-1).gather(1, tokens[:, :1])[:, 0]
    return Greedy(tokens[:, 0].tolist(), logprobs.tolist(), (best[:, 0] - best[:, 1]).tolist())


def peft_mixture(
    model_folder: Path, parts: Sequence[tuple[Path, float]], tasks: Mapping[Path, int] = MappingProxyType({})
) -> PreTrainedModel:
    """Return a base whose modules add the weighted sum of the adapters' deltas to their outputs.

    A delta is the difference between the outputs of PEFT's module and of the base's, for the same input.
    tasks: the task of each adapter that has several.
    """
    model, plain = plain_model(model_folder), plain_model(model_folder)
    for adapter, weight in parts:
        adapted = peft_model(model_folder, adapter).base_model.model
        inputs = {"task_ids": torch.tensor([tasks[adapter]])} if adapter in tasks else {}
        for name, own in plain.named_modules():
            if own._parameters and _differs(own, other := adapted.get_submodule(name)):
                _add_difference(model.get_submodule(name), other, own, weight, inputs)
    return model


def _differs(own: nn.Module, other: nn.Module) -> bool:
    """Tell whether PEFT wraps a module or has changed its parameters."""
    if type(own) is not type(other):
        return True
    return any(not torch.equal(value, other.get_parameter(name)) for name, value in own.named_parameters())


def _add_difference(
    module: nn.Module, other: nn.Module, own: nn.Module, weight: float, inputs: Mapping[str, Any]
) -> None:
    def add(_: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output + weight * (other(*args, **inputs) - own(*args))

    module.register_forward_hook(add)


def peft_scaled(model_folder: Path, adapter: Path, weight: float) -> Any:
    """Load a LoRA with PEFT and multiply all its scalings by a weight."""
    model = peft_model(model_folder, adapter)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.scaling = {name: weight * value for name, value in module.scaling.items()}
    return model


@torch.inference_mode()
def naive_logits(model: PreTrainedModel, bypass: Bypass, ids: list[int]) -> torch.Tensor:
    """Return the logits, of shape (tokens, vocabulary), of a copy of a model with a bypass attached by hooks."""
    served = copy.deepcopy(model)
    for name, primitives in bypass.sites.items():
        _attach(served, name, primitives)
    for layer, side in (bypass.side_attention or {}).items():
        _attend_beside(served, layer, side)
    options: dict[str, Any] = {}
    if bypass.prefix is not None:
        length = bypass.prefix.length
        cache = DynamicCache()
        for layer, (keys, values) in sorted(bypass.prefix.layers.items()):
            cache.update(keys.transpose(0, 1)[None], values.transpose(0, 1)[None], layer)
        options = {
            "past_key_values": cache,
            "position_ids": torch.arange(length, length + len(ids))[None],
            "attention_mask": torch.ones(1, length + len(ids), dtype=torch.int64),
        }
    return served(torch.tensor([ids]), **options).logits[0]


def _attend_beside(model: PreTrainedModel, layer: int, side: SideAttention) -> None:
    """Add side attention to the input of a layer's output projection. q, with its positions, is the layer's own."""
    (attention,) = (m for m in model.modules() if getattr(m, "layer_idx", None) == layer and hasattr(m, "o_proj"))
    terms: list[torch.Tensor] = []

    def before(_: nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["hidden_states"]
        cos, sin = kwargs["position_embeddings"]
        q = attention.q_proj(x).view(*x.shape[:-1], -1, side.keys.shape[-1]).transpose(1, 2)
        q = apply_rotary_pos_emb(q, q, cos, sin)[0]
        keys, values = (
            t.repeat_interleave(q.shape[1] // t.shape[1], dim=1).transpose(0, 1) for t in (side.keys, side.values)
        )
        mixed = (q @ keys.mT * side.scale).softmax(-1) @ values
        terms[:] = [mixed.transpose(1, 2).flatten(-2)]

    attention.register_forward_pre_hook(before, with_kwargs=True)
    # Before the hooks of the primitives there: the module's own input is the sum.
    attention.o_proj.register_forward_pre_hook(lambda _, args: (args[0] + terms[0],), prepend=True)


def _attach(model: nn.Module, name: str, primitives: tuple[Primitive, ...]) -> None:
    module = model.get_submodule(name)
    ops = chained([_op(module, primitive) for primitive in primitives])
    raw: list[torch.Tensor] = []
    streams: dict[str, torch.Tensor] = {}
    for source in {op.source for op in ops if op.source}:
        model.get_submodule(source).register_forward_pre_hook(
            lambda _, args, source=source: streams.update({source: args[0][0]})
        )

    def before(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        raw[:] = [args[0]]
        x = args[0][0]
        if isinstance(module, nn.Embedding):
            return (args[0].clamp(max=module.num_embeddings - 1),)  # a larger vocabulary is the replacement's
        terms = [op(x, None) for op in ops if op.formula.stage is Stage.INPUT]
        return ((x + sum(terms))[None],) if terms else args

    def after(_: nn.Module, __: object, output: torch.Tensor) -> torch.Tensor:
        x, y = raw[0][0], output[0]
        width, known = y.shape[-1], True if x.is_floating_point() else (x < module.num_embeddings)[:, None]
        for op in (op for op in ops if op.formula.stage is Stage.REPLACE):
            y = op(x, y)
        for stage in (Stage.OUTPUT, Stage.ADD):  # which know the base's vocabulary only, where another is larger
            own = y[..., :width]
            terms = [
                _term(op, streams[op.source] if op.source else x, own, known) for op in ops if op.formula.stage is stage
            ]
            if terms:
                y = torch.cat([own + sum(terms), y[..., width:]], -1)
        return y[None]

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)


def _term(op: Op, x: torch.Tensor, y: torch.Tensor, known: torch.Tensor | bool) -> torch.Tensor:
    if known is True or op.kind != "low_rank":
        return op(x, y)
    return op(torch.where(known[:, 0], x, 0), y) * known


def _op(module: nn.Module, primitive: Primitive) -> Op:
    if isinstance(primitive, Replacement):
        shell = copy.deepcopy(module)
        for name, tensor in primitive.tensors().items():
            setattr(shell, name, nn.Parameter(tensor, requires_grad=False))
        return Op(primitive.kind, {"module": shell})
    fields = {field.name: getattr(primitive, field.name) for field in dataclasses.fields(primitive)}
    return Op(primitive.kind, fields)
