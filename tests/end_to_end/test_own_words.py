"""Adapters with tokens of their own, saved with their tokenizers as trainers do, against PEFT and transformers."""

import asyncio
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import openai
import peft
import pytest
import torch
import transformers

pytestmark = pytest.mark.slow

NEW = ["<sql>", " table ", "<done>"]
MAX_TOKENS = 12
TEXTS = ["<sql> select the", "a table of<sql>", "the quick<done>fox"]


class World(NamedTuple):
    """tokenizers, models: of the base under "", and of each adapter."""

    url: str
    tokenizers: dict[str, Any]
    models: dict[str, Any]


def _grown(oracle: ModuleType, model: Path, folder: Path, saved: bool) -> tuple[Any, Any]:
    """Save an adapter with more tokens and its tokenizer; return both. saved: its embeddings are `modules_to_save`."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"additional_special_tokens": [NEW[0], NEW[2]]})
    tokenizer.add_tokens([NEW[1]])
    base = oracle.plain_model(model)
    size = base.get_input_embeddings().weight.shape[0]
    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    more = len(tokenizer) - size
    with torch.no_grad():
        base.lm_head.weight[size:] = 1.5 * base.lm_head.weight[20 : 20 + more] + 0.2 * torch.randn(more, 64)
    modules = ["embed_tokens", "lm_head"] if saved else None
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], modules_to_save=modules)
    tokenizer.eos_token = NEW[2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        grown = peft.get_peft_model(base, config)
        grown.save_pretrained(folder, save_embedding_layers=True)
    tokenizer.save_pretrained(folder)
    return tokenizer, grown.eval()


@pytest.fixture(scope="module")
def world(oracle: ModuleType, device: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("words")
    model = oracle.tiny_model("llama", 3, folder / "model", tie_word_embeddings=False)
    tokenizers, models = {"": transformers.AutoTokenizer.from_pretrained(model)}, {"": oracle.plain_model(model)}
    for name, saved in {"layers": False, "modules": True}.items():
        tokenizers[name], models[name] = _grown(oracle, model, folder / name, saved)
    flags = ("--device", device, "--served-model-name", "base", "--api-workers", "2")
    server = oracle.RunningServer.start(model, folder / "state", folder / "server.log", *flags)
    try:
        for name in ("layers", "modules"):
            files = [("files", (file.name, file.read_bytes())) for file in (folder / name).iterdir()]
            response = server.client.post("/v1/adapters", data={"name": name}, files=files)
            assert response.status_code < 300, response.text
        yield World(server.url, tokenizers, models)
    finally:
        server.stop()


async def test_texts_are_those_of_peft_and_its_tokenizer_beside_the_base(oracle: ModuleType, world: World) -> None:
    """Greedy tokens, their text, and where each ends: at an end of its own, which for the base is text as any other."""
    async with openai.AsyncOpenAI(base_url=f"{world.url}/v1", api_key="key", max_retries=0, timeout=180) as client:
        asked = [(name, text) for text in TEXTS for name in world.models]
        answers = await asyncio.gather(*(_answer(client, name, text, ignore_eos=True) for name, text in asked))
        said = set()
        for (name, text), answer in zip(asked, answers, strict=True):
            tokenizer = world.tokenizers[name]
            prompt = tokenizer(text)["input_ids"]
            wanted = oracle.peft_generate(world.models[name], prompt, MAX_TOKENS)
            assert answer.prompt_token_ids == prompt
            assert answer.token_ids == wanted.token_ids, name
            assert answer.text == tokenizer.decode(wanted.token_ids), name
            said |= set(wanted.token_ids) if name else set()
        size = len(world.tokenizers[""])
        assert max(said) >= size  # so that the test sees a new token

        done = size + 1
        for (name, text), whole in zip(asked, answers, strict=True):
            answer = await _answer(client, name, text, logit_bias={str(done if name else size - 1): 100})
            assert answer.finish_reason == ("stop" if name else "length"), (name, answer.token_ids)
            assert answer.stop_reason is None
            assert whole.finish_reason == "length"


async def _answer(client: openai.AsyncOpenAI, name: str, text: str, logit_bias: Any = None, **extra: Any) -> Any:
    fields: dict[str, Any] = {"return_token_ids": True, "skip_special_tokens": False, **extra}
    made = await client.completions.create(
        model=name or "base",
        prompt=text,
        max_tokens=MAX_TOKENS,
        temperature=0,
        logit_bias=logit_bias,
        extra_body=fields,
    )
    return made.choices[0]


async def test_an_answer_in_a_form_has_the_words_of_its_adapter_alone(world: World) -> None:
    """Special tokens by their names, others as text that one token spells, and the end that is the adapter's own."""
    size = len(world.tokenizers[""])
    sql, done, table = size, size + 1, size + 2
    spelled = {"grammar": "start: <sql> /( table ){2}x+/"}
    async with openai.AsyncOpenAI(base_url=f"{world.url}/v1", api_key="key", max_retries=0, timeout=180) as client:
        names, bias = [name for name in world.models if name] * 2, {str(table): 100, str(done): 50}
        asked = [_answer(client, name, TEXTS[0], bias, structured_outputs=spelled) for name in names]
        plain = _answer(client, "", TEXTS[0], structured_outputs={"regex": " table "})
        *answers, base = await asyncio.gather(*asked, plain)
        letter = world.tokenizers[""]("x", add_special_tokens=False)["input_ids"]
        for name, answer in zip(names, answers, strict=True):
            assert answer.token_ids == [sql, table, table, *letter, done], name
            assert (answer.text, answer.finish_reason) == ("<sql> table  table x", "stop")
        assert max(base.token_ids) < size
        assert base.text == " table "
        with pytest.raises(openai.BadRequestError, match="sql"):
            await _answer(client, "", TEXTS[0], structured_outputs=spelled)


async def test_the_words_of_a_name_in_every_process(world: World) -> None:
    async with openai.AsyncOpenAI(base_url=world.url, api_key="key", max_retries=0, timeout=180) as client:
        for name in ("layers", "modules"):
            ids = world.tokenizers[name](TEXTS[0])["input_ids"]
            for _ in range(4):
                body = {"model": name, "prompt": TEXTS[0]}
                answer = await client.post("/tokenize", body=body, cast_to=object)
                assert answer["tokens"] == ids  # type: ignore[index]
