"""Adapters at and before the output head, in one batch: each request gets the tokens that PEFT gives it alone.

Between the body and the head of BERT's kin is a transform, which sees only the rows whose logits are wanted; and an
adapter with a larger vocabulary makes the logits of its whole batch wider.
"""

import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import peft
import pytest
import torch
import transformers

from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine
from peftserve.server.wire.messages import AddRequest, SamplingParams, WeightedAdapter

MAX_TOKENS = 6
QV = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"])
MORE = 7  # tokens of a larger vocabulary, beyond the base's
SETTINGS: Mapping[str, dict[str, Any]] = {
    "whole prompts": {"max_batch_tokens": 512, "prefix_caching": False},
    "chunks": {"max_batch_tokens": 24, "page_size": 8},
    "overlapped chunks": {"max_batch_tokens": 17, "page_size": 8, "async_scheduling": True},
}

SMALL = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


class Kin(NamedTuple):
    """A model with a transform before its head, and the ends of the names of its modules."""

    config: Callable[..., Any]
    dense: str
    norm: str
    head: str
    attention: list[str]


_BERT = ["query", "value"]
KIN: Mapping[str, Kin] = {
    "bert": Kin(transformers.BertConfig, "transform.dense", "transform.LayerNorm", "predictions.decoder", _BERT),
    "roberta": Kin(transformers.RobertaConfig, "lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", _BERT),
    "electra": Kin(
        lambda **own: transformers.ElectraConfig(**own, embedding_size=32),
        "generator_predictions.dense",
        "generator_predictions.LayerNorm",
        "generator_lm_head",
        _BERT,
    ),
    "modernbert": Kin(
        lambda **own: transformers.ModernBertDecoderConfig(
            **own, cls_token_id=3, sep_token_id=4, global_attn_every_n_layers=2, local_attention=24
        ),
        "lm_head.dense",
        "lm_head.norm",
        "decoder",
        ["q_proj", "v_proj"],
    ),
}


class World(NamedTuple):
    """requests: an adapter's name or "", a prompt, and what PEFT answers."""

    model: Path
    adapters: Mapping[str, Path]
    requests: list[tuple[str, list[int], Any]]


def _configs(kin: Kin) -> Mapping[str, Any]:
    task, dense = {"task_type": "CAUSAL_LM"}, [kin.dense]
    return {
        "lora": peft.LoraConfig(**task, r=4, target_modules=dense),
        "lora everywhere": peft.LoraConfig(**task, r=6, target_modules=[*kin.attention, kin.dense, kin.head]),
        "dora": peft.LoraConfig(**task, r=4, use_dora=True, target_modules=dense),
        "lora_bias": peft.LoraConfig(**task, r=3, lora_bias=True, target_modules=dense),
        "ia3": peft.IA3Config(**task, target_modules=[*kin.attention, kin.dense], feedforward_modules=[]),
        "ia3 of the input": peft.IA3Config(**task, target_modules=dense, feedforward_modules=dense),
        "oft": peft.OFTConfig(**task, oft_block_size=8, target_modules=dense),
        "boft": peft.BOFTConfig(**task, boft_block_size=4, target_modules=dense),
        "beft": peft.BeftConfig(**task, target_modules=dense),
        "loha": peft.LoHaConfig(**task, r=2, target_modules=dense),
        "norm": peft.LNTuningConfig(**task, target_modules=[kin.norm]),
        "saved": peft.LoraConfig(**task, r=2, target_modules=kin.attention, modules_to_save=dense),
    }


def _prompts(count: int) -> list[list[int]]:
    chance = random.Random(3)
    return [[chance.randrange(5, 300) for _ in range(chance.choice((3, 9, 20, 41)))] for _ in range(count)]


def _quiet(name: str, parameter: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return parameter + 0.15 * torch.randn(parameter.shape, generator=generator)


def _save(config: Any, folder: Path) -> Path:
    model = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def kin(oracle: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], World]:
    """Make the world of an architecture, each once."""

    @cache
    def make(name: str) -> World:
        folder = tmp_path_factory.mktemp(name)
        decoder = {} if name == "modernbert" else {"is_decoder": True}
        model = _save(KIN[name].config(**SMALL, **decoder), folder / "model")
        adapters = {
            method: oracle.method_adapter(model, folder / method, config, randomize=_quiet)
            for method, config in _configs(KIN[name]).items()
        }
        loaded = {"": oracle.plain_model(model)} | {m: oracle.peft_model(model, a) for m, a in adapters.items()}
        return World(model, adapters, _answered(oracle, loaded))

    return make


def _answered(oracle: ModuleType, models: Mapping[str, Any]) -> list[tuple[str, list[int], Any]]:
    names = [name for name in models for _ in range(2)]
    sizes = {name: model.get_input_embeddings().weight.shape[0] for name, model in models.items()}
    pairs = [
        (name, [token % sizes[name] for token in prompt])
        for name, prompt in zip(names, _prompts(len(names)), strict=True)
    ]
    random.Random(4).shuffle(pairs)
    return [(name, prompt, oracle.peft_generate(models[name], prompt, MAX_TOKENS)) for name, prompt in pairs]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("architecture", KIN)
def test_adapters_between_the_body_and_the_head(
    kin: Callable[[str], World], architecture: str, setting: str, device: str
) -> None:
    world = kin(architecture)
    assert not _serve(world, device, **SETTINGS[setting])


def test_a_model_that_gives_all_logits_whatever_is_wanted(
    kin: Callable[[str], World], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is between its body and its head sees every token then."""
    world, forward = kin("bert"), transformers.BertLMHeadModel.forward

    def deaf(self: Any, *args: Any, logits_to_keep: Any = 0, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(transformers.BertLMHeadModel, "forward", deaf)
    assert not _serve(world, device, **SETTINGS["chunks"])


def test_steps_of_which_no_row_reaches_the_head(kin: Callable[[str], World], device: str) -> None:
    """Each request alone, so that nothing runs beside the first chunks of its prompt."""
    assert not _serve(kin("bert"), device, max_batch_tokens=16, max_running=1)


@pytest.fixture(scope="module", params=["tied", "apart", "biased"])
def wide(request: pytest.FixtureRequest, oracle: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> World:
    """An adapter with a larger vocabulary, and others on the head with the base's."""
    folder = tmp_path_factory.mktemp("wide")
    if request.param == "biased":
        model = _save(transformers.PhiConfig(**SMALL), folder / "model")
    else:
        model = oracle.tiny_model("qwen2", 3, folder / "model", tie_word_embeddings=request.param == "tied")
    task, head = {"task_type": "CAUSAL_LM"}, ["lm_head"]
    configs = {
        "lora": peft.LoraConfig(**task, r=4, target_modules=["q_proj", *head]),
        "dora": peft.LoraConfig(**task, r=4, use_dora=True, target_modules=head),
        "lora_bias": peft.LoraConfig(**task, r=3, lora_bias=True, target_modules=head),
        "ia3": peft.IA3Config(**task, target_modules=["k_proj", *head], feedforward_modules=[]),
        "ia3 of the input": peft.IA3Config(**task, target_modules=head, feedforward_modules=head),
        "road": peft.RoadConfig(**task, group_size=4, target_modules=head),
        "boft": peft.BOFTConfig(**task, boft_block_size=4, target_modules=head),
        "vera": peft.VeraConfig(**task, r=8, target_modules=head),
        "shira": peft.ShiraConfig(**task, r=4, target_modules=head),
        "loha": peft.LoHaConfig(**task, r=2, target_modules=head),
        "saved": peft.LoraConfig(**task, r=2, target_modules=["q_proj"], modules_to_save=head),
        "tokens": peft.TrainableTokensConfig(**task, token_indices=[5, 9, 30]),
    }
    adapters = {
        name: oracle.method_adapter(model, folder / name, config, randomize=_quiet) for name, config in configs.items()
    }
    models = {"": oracle.plain_model(model)} | {n: oracle.peft_model(model, a) for n, a in adapters.items()}
    lora = {"task_type": "CAUSAL_LM", "r": 4}
    new = {"trainable_token_indices": {"embed_tokens": [300, 7, 301], "lm_head": [300, 7, 301]}}
    trained = {"trainable_token_indices": [3, 289]}
    both = {**lora, "target_modules": ["q_proj", "embed_tokens", "lm_head"]}
    resized = {
        f"{MORE} tokens more": (300 + MORE, QV),
        f"{2 * MORE} tokens more": (300 + 2 * MORE, QV),
        "more, with LoRA on both": (300 + MORE, peft.LoraConfig(**both)),
        "more, with DoRA on both": (300 + MORE, peft.LoraConfig(**both, use_dora=True)),
        "more, with trained tokens": (302, peft.LoraConfig(**lora, target_modules=["q_proj"], **new)),
        "fewer": (280, QV),
        "fewer, with LoRA on both": (270, peft.LoraConfig(**both)),
        "fewer, with DoRA on both": (270, peft.LoraConfig(**both, use_dora=True)),
        "fewer, saved": (290, peft.LoraConfig(**lora, target_modules=["q_proj"], modules_to_save=head)),
        "fewer, with trained tokens": (290, peft.LoraConfig(**lora, target_modules=["k_proj"], **trained)),
    }
    for name, (size, config) in resized.items():
        models[name] = _resized(oracle, model, folder / name, size, config)
        adapters[name] = folder / name
    return World(model, adapters, _answered(oracle, models))


def _resized(oracle: ModuleType, model: Path, folder: Path, size: int, config: Any) -> Any:
    """Train with a vocabulary of another size, and save as PEFT does by itself. Returns the model as it was trained."""
    base = oracle.plain_model(model)
    base.resize_token_embeddings(size, mean_resizing=False)
    more = max(size - 300, 0)
    with torch.no_grad():  # so that it says the new ones
        if base.lm_head.bias is not None:
            base.lm_head.bias[300:] = 0.3
        base.lm_head.weight[300:] = 1.5 * base.lm_head.weight[20 : 20 + more] + 0.2 * torch.randn(more, 64)
    generator = torch.Generator().manual_seed(size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained = peft.get_peft_model(base, config)
        with torch.no_grad():
            for name, parameter in trained.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(_quiet(name, parameter, generator))
        trained.save_pretrained(folder)
    return trained.eval()


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_larger_vocabulary_beside_every_adapter_on_the_head(wide: World, setting: str, device: str) -> None:
    said = [token for name, _, answer in wide.requests if "more" in name for token in answer.token_ids]
    assert max(said) >= 300
    assert not _serve(wide, device, **SETTINGS[setting])


def test_an_adapter_with_fewer_tokens_reads_no_others(wide: World, device: str) -> None:
    requests = [("fewer", [5, 279, token], None) for token in (280, 299)]
    refused = "fewer: the prompt holds a token id outside of the vocabulary of 280"
    assert _serve(wide._replace(requests=requests), device) == [refused, refused]


def test_a_larger_vocabulary_in_a_mixture(oracle: ModuleType, tmp_path: Path, device: str) -> None:
    """The base says and reads nothing of the new tokens, and nor does an adapter of its vocabulary."""
    model = oracle.tiny_model("qwen2", 3, tmp_path / "model", tie_word_embeddings=False)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["embed_tokens", "k_proj", "lm_head"])
    other = oracle.method_adapter(model, tmp_path / "other", config, randomize=_quiet)
    grown = _resized(oracle, model, tmp_path / "grown", 300 + MORE, QV)
    mixed = oracle.plain_model(model)
    base = {name: _padded(value) for name, value in mixed.state_dict().items()}
    mixed.resize_token_embeddings(300 + MORE, mean_resizing=False)
    a, b = (merged.merge_and_unload().state_dict() for merged in (grown, oracle.peft_model(model, other)))
    deltas = {name: 0.7 * (a[name] - w) + 0.3 * (_padded(b[name]) - w) for name, w in base.items()}
    mixed.load_state_dict({name: value + deltas[name] for name, value in base.items()})
    requests = [("", prompt, oracle.peft_generate(mixed, prompt, MAX_TOKENS)) for prompt in ([20, 303, 5, 306], [9, 8])]
    parts = [WeightedAdapter("grown", 0.7), WeightedAdapter("other", 0.3)]
    assert not _serve(World(model, {"grown": tmp_path / "grown", "other": other}, requests), device, parts)


def _padded(weight: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(weight, (0, 0, 0, MORE)) if weight.dim() == 2 and len(weight) == 300 else weight


def _serve(world: World, device: str, mixture: Sequence[WeightedAdapter] = (), **settings: Any) -> list[str]:
    """Answer all requests at once and return what went wrong. mixture: answers requests that name no adapter."""
    engine = Engine(EngineConfig(model=str(world.model), device=device, dtype="float32", max_loras=64, **settings))
    try:
        for name, adapter in world.adapters.items():
            engine.inspect_adapter(name, adapter)
        outputs: dict[str, list[Any]] = {}
        for i, (name, prompt, _) in enumerate(world.requests):
            sampling = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True, logprobs=0)
            parts = [WeightedAdapter(name)] if name else [*mixture]
            engine.add_request(
                AddRequest(request_id=str(i), prompt_token_ids=prompt, sampling=sampling, adapters=parts)
            )
            outputs[str(i)] = []
        while engine.has_work():
            for output in engine.step():
                outputs[output.request_id].append(output)
        engine.check_integrity()
        return [w for i, request in enumerate(world.requests) if (w := _difference(request, outputs[str(i)]))]
    finally:
        engine.close()


def _difference(request: tuple[str, list[int], Any], outputs: list[Any]) -> str:
    name, _, wanted = request
    if outputs[-1].error:
        return f"{name or 'base'}: {outputs[-1].error}"
    reports = [report.chosen for output in outputs for report in output.logprobs or []]
    for i, (report, token, logprob, margin) in enumerate(
        zip(reports, wanted.token_ids, wanted.logprobs, wanted.margins, strict=True)
    ):
        if report.token_id != token:
            return "" if margin < 1e-4 else f"{name or 'base'}: number {i} is {report.token_id}, not {token}"
        if abs(report.logprob - logprob) > 2e-4 * max(1, abs(logprob)):
            return f"{name or 'base'}: number {i} has the logprob {report.logprob:.6f}, not {logprob:.6f}"
    return ""
