"""Bases in the forms of real packages: each method gives what PEFT gives on the same quantised base, or is refused.

A form whose package is not installed is skipped; `test_quantised.py` has such forms without a package.
"""

import warnings
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from peftserve.adapters.errors import UnsupportedAdapter
from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine
from peftserve.server.engine.model.quantisation import how_to_load, keep_as_loaded
from peftserve.server.wire.messages import AddRequest, SamplingParams, WeightedAdapter

PROMPT = [5, 17, 42, 99, 7, 250, 31, 8]
MAX_TOKENS = 4


class Form(NamedTuple):
    """A form of quantisation.

    asked: as `--quantization` takes it. margin: between the best two logits, below which correct passes may differ.
    methods: of the catalogue, which PEFT supports on it. refused: with what the refusal says.
    """

    package: str
    asked: str
    methods: tuple[str, ...]
    refused: tuple[tuple[str, str], ...] = ()
    margin: float = 1e-3


_CODES = "stores uint8"
_ANEW = "quantises what is left anew"
FORMS = {
    "nf4": Form(
        "bitsandbytes",
        '{"load_in_4bit": true, "bnb_4bit_quant_type": "nf4"}',
        ("lora", "lora-dora", "ia3", "vera", "oft", "boft", "road-1", "miss-bat", "hira", "prompt-tuning"),
        (("lora-olora", _ANEW), ("unilora", _CODES)),
    ),
    "qlora": Form("bitsandbytes", "bnb-4bit", ("lora-dora", "lora-saving-modules", "adalora", "adaption-prompt")),
    "int8": Form(
        "bitsandbytes",
        "int8",
        ("lora", "ia3", "oft"),
        (("unilora", "stores int8"), ("hra", "takes these codes")),
        margin=0.05,
    ),
    "fp8": Form("torchao", "fp8", ("lora", "lora-dora", "ia3", "oft")),
    "quanto-int8": Form(
        "optimum.quanto", '{"quant_method": "quanto", "weights": "int8"}', ("lora", "lora-dora", "ia3", "oft", "hira")
    ),
}


def quantised_base(folder: Path, form: Form) -> Any:
    """Load a base as transformers quantises it, in float32."""
    told = how_to_load(form.asked, AutoConfig.from_pretrained(folder), torch.float32, torch.device("cpu"))
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **told)
    keep_as_loaded(model)  # as on any processor
    return model.eval().requires_grad_(False)


def upload(engine: Engine, digest: str, adapter: Path) -> None:
    inspection = engine.start_inspection(digest, adapter)
    while not inspection.done():
        engine.poll()
    inspection.result()


def answers(engine: Engine, digests: list[str]) -> dict[str, list[int]]:
    """Return the greedy tokens of each adapter, all in one batch. "" is the base."""
    sampling = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True)
    for digest in digests:
        parts = [WeightedAdapter(digest)] if digest else []
        engine.add_request(AddRequest(request_id=digest, prompt_token_ids=PROMPT, sampling=sampling, adapters=parts))
    tokens: dict[str, list[int]] = {digest: [] for digest in digests}
    while engine.has_work():
        for output in engine.step():
            assert output.error is None
            tokens[output.request_id] += output.token_ids
    return tokens


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_methods_on_a_quantised_base(name: str, oracle: ModuleType, tmp_path: Path) -> None:
    form, kind = FORMS[name], oracle.kind_of("llama")
    pytest.importorskip(form.package)
    folder = oracle.tiny_model("llama", 4, tmp_path / "plain")
    engine = Engine(EngineConfig(model=str(folder), device="cpu", dtype="float32", quantization=form.asked))

    def adapter(method: str) -> Path:
        entry = oracle.CATALOG[method]
        made: Path = oracle.method_adapter(folder, tmp_path / method, entry.make(kind), randomize=entry.randomize)
        return made

    try:
        for method, reason in form.refused:
            with pytest.raises(UnsupportedAdapter, match=reason):
                upload(engine, method, adapter(method))
        folders = {method: adapter(method) for method in form.methods}
        for method, made in folders.items():
            upload(engine, method, made)
        got = answers(engine, ["", *folders])
    finally:
        engine.close()
    for method, tokens in got.items():
        model = quantised_base(folder, form)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = PeftModel.from_pretrained(model, folders[method]).eval() if method else model
            answer: Any = oracle.peft_generate(model, PROMPT, MAX_TOKENS)
        sure = next((i for i, margin in enumerate(answer.margins) if margin < form.margin), MAX_TOKENS)
        assert tokens[:sure] == answer.token_ids[:sure], method
