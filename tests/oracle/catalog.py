"""One configuration of every PEFT method and variant that is served: what the end-to-end tests upload.

Names say method and variant. A row is a configuration for a kind of model, or None where PEFT itself does not support
the pair.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import peft
import torch
from peft import PeftConfig
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig

from .adapters import modules_of
from .methods import Randomize, shaken

VIRTUAL = 5


@dataclass(frozen=True)
class Kind:
    """What configurations need to know of a model: its type, and the names of its modules."""

    model_type: str
    attention: list[str]
    mlp: list[str]
    embedding: str

    @property
    def linears(self) -> list[str]:
        return [*self.attention, *self.mlp]


@dataclass(frozen=True)
class Entry:
    """How to make an adapter of one method.

    make: a function from a kind of model to a configuration, or to None where PEFT does not support the pair.
    randomize: draws the values of trainable parameters.
    task: the `task_id` of requests for it, or None.
    decomposes: whether PEFT factorises the base's weights when it loads the checkpoint. It does so on the device that
        they are on, and another device gives other factors, by more than rounding where singular values are close.
    """

    make: Callable[[Kind], PeftConfig | None]
    randomize: Randomize = shaken
    task: int | None = None
    decomposes: bool = False


def is_fault(error: Exception) -> bool:
    """Tell a fault from PEFT's refusal of a method for modules of this kind."""
    return not (isinstance(error, TypeError | ValueError | NotImplementedError) and "support" in str(error))


def kind_of(model_type: str) -> Kind:
    own = modules_of(model_type)
    return Kind(model_type, list(own["attention"]), list(own["mlp"]), str(own["embedding"]))


def quiet(name: str, parameter: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Add noise of 0.1, for methods that rotate or multiply weights."""
    return parameter + 0.1 * torch.randn(parameter.shape, generator=generator)


def loud(name: str, parameter: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Add noise of 1, for methods on which the usual noise has little effect."""
    return parameter + torch.randn(parameter.shape, generator=generator)


def _on(config: type[Any], **options: Any) -> Callable[[Kind], PeftConfig]:
    """Return a factory of a configuration that targets all linears of a kind of model."""

    def make(kind: Kind) -> PeftConfig:
        known = config.__dataclass_fields__
        transposed = {"fan_in_fan_out": True} if kind.model_type == "gpt2" and "fan_in_fan_out" in known else {}
        made: PeftConfig = config(**{"task_type": "CAUSAL_LM", "target_modules": kind.linears, **transposed, **options})
        return made

    return make


def _prompt(config: type[Any], **options: Any) -> Callable[[Kind], PeftConfig]:
    return lambda _: config(task_type="CAUSAL_LM", **options)


def _unless(*model_types: str, make: Callable[[Kind], PeftConfig | None]) -> Callable[[Kind], PeftConfig | None]:
    return lambda kind: None if kind.model_type in model_types else make(kind)


def _lora(**options: Any) -> Callable[[Kind], PeftConfig]:
    return _on(peft.LoraConfig, **{"r": 8, "lora_alpha": 16, **options})


def _saving(kind: Kind) -> PeftConfig:
    """Configure LoRA with two modules saved whole: the head and the last norm."""
    norm = "ln_f" if kind.model_type == "gpt2" else "model.norm"
    return _lora(modules_to_save=["lm_head", norm])(kind)


def _invoked(kind: Kind) -> PeftConfig:
    return _lora(alora_invocation_tokens=[7, 8])(kind)


def _block_diagonal(kind: Kind) -> PeftConfig:
    last = kind.mlp[-1].rpartition(".")[2]
    first = [name for name in kind.linears if name.rpartition(".")[2] != last]
    config = BdLoraConfig(nblocks=2, target_modules_bd_a=[last], target_modules_bd_b=first)
    return _lora(use_bdlora=config)(kind)


def _experts(kind: Kind) -> PeftConfig | None:
    if kind.model_type != "mixtral":
        return None
    return _lora(
        target_modules=["q_proj"],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        lora_dropout=0.0,
    )(kind)


def _embedding(kind: Kind, **options: Any) -> PeftConfig:
    return peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=[kind.embedding, "lm_head"], **options)


def _arrow(**options: Any) -> Callable[[Kind], PeftConfig]:
    """Return a factory of Arrow's router over experts that are LoRA.

    It targets modules by the last part of their names, since PEFT's router knows no more of a name.
    """

    def make(kind: Kind) -> PeftConfig:
        names = [name for name in kind.linears if "." not in name]
        return _lora(r=4, arrow_config=peft.ArrowConfig(rng_seed=5, **options), target_modules=names)(kind)

    return make


def _ia3(kind: Kind) -> PeftConfig:
    transposed = kind.model_type == "gpt2"
    last = kind.mlp[-1:]
    return peft.IA3Config(
        task_type="CAUSAL_LM",
        target_modules=[*kind.attention, *last],
        feedforward_modules=last,
        fan_in_fan_out=transposed,
    )


def _norms(kind: Kind) -> PeftConfig:
    names = ["ln_1", "ln_2", "ln_f"] if kind.model_type == "gpt2" else ["input_layernorm", "post_attention_layernorm"]
    return peft.LNTuningConfig(task_type="CAUSAL_LM", target_modules=names)


def _adaption(kind: Kind) -> PeftConfig | None:
    if kind.model_type not in ("llama", "mistral"):
        return None
    return peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=4, adapter_layers=2)


def _cpt(kind: Kind) -> PeftConfig:
    return peft.CPTConfig(
        task_type="CAUSAL_LM",
        cpt_token_ids=[5, 6, 7, 8, 9],
        cpt_mask=[1] * 5,
        cpt_tokens_type_mask=[1, 2, 2, 3, 4],
        opt_projection_epsilon=10.0,
        opt_projection_format_epsilon=10.0,
    )


def _multitask(_: Kind) -> PeftConfig:
    return peft.MultitaskPromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL, num_tasks=3, num_ranks=2)


def _vectors(**options: Any) -> Callable[[Kind], PeftConfig]:
    return _on(peft.VBLoRAConfig, r=4, num_vectors=32, vector_length=8, **options)


CATALOG: Mapping[str, Entry] = {
    "lora": Entry(_lora()),
    "lora-rslora": Entry(_lora(use_rslora=True)),
    "lora-dora": Entry(_lora(use_dora=True)),
    "lora-bias-all": Entry(_lora(bias="all")),
    "lora-bias-only": Entry(_lora(bias="lora_only")),
    "lora-lora-bias": Entry(_lora(lora_bias=True)),
    "lora-mica": Entry(_lora(init_lora_weights="mica")),
    "lora-pissa": Entry(_lora(init_lora_weights="pissa"), decomposes=True),
    "lora-olora": Entry(_unless("gpt2", make=_lora(init_lora_weights="olora")), decomposes=True),
    "lora-kasa": Entry(_on(peft.LoraConfig, r=4, kasa_config=KasaConfig())),
    "lora-velora": Entry(_lora(velora_config=VeloraConfig())),
    "lora-monteclora": Entry(_lora(monteclora_config=MontecloraConfig())),
    "lora-bdlora": Entry(_unless("gpt2", make=_block_diagonal)),
    "lora-saving-modules": Entry(_saving),
    "lora-trainable-tokens": Entry(_lora(trainable_token_indices=[5, 9, 30])),
    "lora-embedding-and-head": Entry(_embedding),
    "lora-alora": Entry(_invoked),
    "lora-experts": Entry(_experts),
    "lora-all-linear": Entry(_lora(target_modules="all-linear")),  # on a mixture, its experts and its router too
    "lora-arrow": Entry(_arrow(top_k=2, router_temperature=0.5)),
    "lora-arrow-gks": Entry(_arrow(top_k=3, use_gks=True)),
    "adalora": Entry(_on(peft.AdaLoraConfig, init_r=6, target_r=4, lora_alpha=16, total_step=10)),
    "loha": Entry(_on(peft.LoHaConfig, r=3, alpha=6)),
    "lokr": Entry(_on(peft.LoKrConfig, r=4, alpha=8)),
    "lokr-both": Entry(_on(peft.LoKrConfig, r=2, alpha=4, decompose_both=True, decompose_factor=8)),
    "vera": Entry(_on(peft.VeraConfig, r=16)),
    "pvera": Entry(_on(peft.PveraConfig, r=16)),
    "vblora": Entry(_on(peft.VBLoRAConfig, r=4, num_vectors=32, vector_length=8), loud),
    "vblora-topk": Entry(
        _on(peft.VBLoRAConfig, r=4, num_vectors=32, vector_length=8, save_only_topk_weights=True), loud
    ),
    "delora": Entry(_on(peft.DeloraConfig, r=4)),
    "gralora": Entry(_on(peft.GraloraConfig, r=8, alpha=8)),
    "gralora-hybrid": Entry(_on(peft.GraloraConfig, r=8, alpha=8, hybrid_r=4)),
    "hra": Entry(_on(peft.HRAConfig, r=4)),
    "hra-orthogonal": Entry(_on(peft.HRAConfig, r=4, apply_GS=True)),
    "miss": Entry(_on(peft.MissConfig, r=8)),
    "miss-mini": Entry(_on(peft.MissConfig, r=8, mini_r=4, init_weights="mini")),
    "miss-bat": Entry(_on(peft.MissConfig, r=8, init_weights="bat"), quiet),
    "deft": Entry(_on(peft.DeftConfig, r=4)),
    "peanut": Entry(_on(peft.PeanutConfig, r=4)),
    "osf": Entry(_unless("gpt2", make=_on(peft.OSFConfig, effective_rank=8))),
    "poly": Entry(_on(peft.PolyConfig, r=4, n_tasks=3, n_skills=2, n_splits=2), task=1),
    "randlora": Entry(_on(peft.RandLoraConfig, r=8, randlora_alpha=16)),
    "tinylora": Entry(_on(peft.TinyLoraConfig)),
    "unilora": Entry(_on(peft.UniLoraConfig, r=4, theta_d_length=64), loud),
    "psoft": Entry(_on(peft.PsoftConfig, r=8, psoft_alpha=8), quiet),
    "adamss": Entry(_on(peft.AdamssConfig, r=16, num_subspaces=3)),
    "waveft": Entry(_on(peft.WaveFTConfig, n_frequency=50)),
    "ia3": Entry(_ia3),
    "beft": Entry(_on(peft.BeftConfig)),
    "ln-tuning": Entry(_norms),
    "oft": Entry(_on(peft.OFTConfig, oft_block_size=8), quiet),
    "oft-shared": Entry(_on(peft.OFTConfig, oft_block_size=8, block_share=True, use_cayley_neumann=False), quiet),
    "boft": Entry(_on(peft.BOFTConfig, boft_block_size=4), quiet),
    "road-1": Entry(_on(peft.RoadConfig, variant="road_1", group_size=8), quiet),
    "road-2": Entry(_on(peft.RoadConfig, variant="road_2", group_size=8), quiet),
    "road-4": Entry(_on(peft.RoadConfig, variant="road_4", group_size=8), quiet),
    "shira": Entry(_on(peft.ShiraConfig, r=4)),
    "supertuning": Entry(_on(peft.SupertuningConfig, sparsity=0.95)),
    "supertuning-lora": Entry(_on(peft.SupertuningConfig, sparsity=0.95, r=4, lora_alpha=4)),
    "fourierft": Entry(_on(peft.FourierFTConfig, n_frequency=20)),
    "c3a": Entry(_on(peft.C3AConfig, block_size=16), loud),
    "frod": Entry(_on(peft.FrodConfig, progressbar=False), quiet),
    "hira": Entry(_on(peft.HiraConfig, r=4)),
    "glora": Entry(_on(peft.GloraConfig, r=4), quiet),
    "glora-vectors": Entry(
        _on(peft.GloraConfig, r=4, config_A_B="vector", config_C="vector", config_D_E="constant"), quiet
    ),
    "trainable-tokens": Entry(
        lambda _: peft.TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=[5, 9, 30, 41])
    ),
    "prompt-tuning": Entry(_prompt(peft.PromptTuningConfig, num_virtual_tokens=VIRTUAL)),
    "p-tuning": Entry(_prompt(peft.PromptEncoderConfig, num_virtual_tokens=VIRTUAL, encoder_hidden_size=32)),
    "prefix-tuning": Entry(_prompt(peft.PrefixTuningConfig, num_virtual_tokens=VIRTUAL)),
    "prefix-projection": Entry(
        _prompt(peft.PrefixTuningConfig, num_virtual_tokens=19, prefix_projection=True, encoder_hidden_size=32)
    ),
    "cpt": Entry(_cpt),
    "multitask-prompt": Entry(_multitask, task=2),
    "cartridge": Entry(_prompt(peft.CartridgeConfig, num_virtual_tokens=VIRTUAL)),
    "adaption-prompt": Entry(_adaption),
}
