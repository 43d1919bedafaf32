"""The kit itself: what it says must be PEFT's answer, and its models and adapters must tell implementations apart."""

import ast
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPT = [7, 250, 31, 90, 44, 44, 120]


@pytest.fixture(scope="module")
def tied(oracle: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    folder = tmp_path_factory.mktemp("tied")
    model = oracle.tiny_model("qwen2", 0, folder / "model")
    return model, oracle.varied_adapters(model, folder / "adapters")


def test_base_is_transformers_generate(oracle: ModuleType, tied: tuple[Path, list[Path]]) -> None:
    model = AutoModelForCausalLM.from_pretrained(tied[0], dtype=torch.float32)
    answer = oracle.PeftOracle(tied[0]).greedy(PROMPT, 9)
    ids = torch.tensor([PROMPT])
    generated = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=9, eos_token_id=None)
    assert answer.token_ids == generated[0, len(PROMPT) :].tolist()
    assert len(set(answer.token_ids)) > 3


def test_a_mixture_is_the_weighted_sum_of_bypasses(oracle: ModuleType, tied: tuple[Path, list[Path]]) -> None:
    """Two halves of an adapter are the adapter, on tied embedding and head too, and its weight counts."""
    reference = oracle.PeftOracle(tied[0])
    for adapter in tied[1]:
        alone = reference.prompt_logprobs(PROMPT, ((adapter, 1.0),))
        halves = reference.prompt_logprobs(PROMPT, ((adapter, 0.5), (adapter, 0.5)))
        assert halves == pytest.approx(alone, abs=1e-4)
        assert reference.prompt_logprobs(PROMPT, ((adapter, 0.5),)) != pytest.approx(alone, abs=1e-2)


def test_every_adapter_changes_the_text(oracle: ModuleType, tied: tuple[Path, list[Path]]) -> None:
    reference = oracle.PeftOracle(tied[0])
    mixtures = [(), *(((adapter, 1.0),) for adapter in tied[1])]
    texts = {tuple(reference.greedy(PROMPT, 12, mixture).token_ids) for mixture in mixtures}
    assert len(texts) == 9


def test_files_have_the_type_that_was_asked_for(tied: tuple[Path, list[Path]]) -> None:
    dtypes = {a.name: {t.dtype for t in load_file(a / "adapter_model.safetensors").values()} for a in tied[1]}
    assert dtypes["one_layer"] == {torch.float16}
    assert dtypes["excluded"] == {torch.bfloat16}
    assert dtypes["suffixes"] == {torch.float32}


def test_a_workload_has_all_kinds_and_can_be_repeated(oracle: ModuleType, tied: tuple[Path, list[Path]]) -> None:
    reference = oracle.PeftOracle(tied[0])
    requests = oracle.random_workload(reference, tied[1], seed=3, size=40)
    assert requests == oracle.random_workload(reference, tied[1], seed=3, size=40)
    assert {min(len(request.mixture), 2) for request in requests} == {0, 1, 2}
    assert {request.finish_reason for request in requests} == {"stop", "length"}
    assert all(1 <= len(request.token_ids) <= request.max_tokens <= 24 for request in requests)
    assert sum(len(set(request.token_ids)) > 3 for request in requests) > 20


def test_the_tokenizer_takes_any_text_and_fills_the_vocabulary(oracle: ModuleType, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(oracle.tiny_model("llama", 0, tmp_path))
    assert len(tokenizer) == oracle.VOCAB_SIZE
    text = "the änother 漢\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    chat = [{"role": "user", "content": "hi"}]
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert prompt == "<s><|user|>hi<|assistant|>"


SERVERS_OWN = {"fastapi", "httptools", "httpx", "openai", "prometheus_client", "pydantic", "uvicorn"}


@pytest.mark.parametrize("folder", ["tests/oracle", "server/engine", "server/wire", "adapters/peft", "kernels"])
def test_what_needs_no_server_imports_none_of_a_servers_packages(folder: str) -> None:
    """So that it runs on a machine with a GPU that has little but torch, transformers and PEFT."""
    found = {
        (path.name, name)
        for path in Path(__file__).parents[2].joinpath(folder).rglob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
        if name.partition(".")[0] in SERVERS_OWN
    }
    assert not found
