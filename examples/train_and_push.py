"""Train an adapter with PEFT, push it to a running server, and ask it, all in one go.

    make serve                             # in another terminal: the demo, on http://127.0.0.1:8000
    python examples/train_and_push.py      # needs peft and httpx; half a minute on one CPU core

The base of the demo repeats whatever it is told. The adapter learns, from a few dozen texts, to end them with "!".
With TRL the training is `SFTTrainer(model, train_dataset=..., peft_config=LoraConfig(...)).train()`, and all that comes
after it is the same: what `save_pretrained` has written is what the server takes.
"""

import os
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import httpx
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

URL = os.environ.get("PEFTSERVE_URL", "http://127.0.0.1:8000")
BASE = Path(__file__).resolve().parents[1] / "server/demo/base"  # what `peftserve serve` serves without a MODEL
WORDS = ["quiet", "river", "bridge", "silver", "cloud", "stone", "forest", "island", "market", "music", "winter"]


def train(folder: Path, steps: int = 40) -> None:
    """Write a LoRA adapter of rank 8 to a folder, as PEFT saves it."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    config = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear")
    model = get_peft_model(base, config)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    random = Random(0)
    for _ in range(steps):
        rows = [example(tokenizer, " ".join(random.choices(WORDS, k=random.randint(1, 4)))) for _ in range(8)]
        model(**batch(rows)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)  # adapter_config.json and adapter_model.safetensors


def example(tokenizer, text: str) -> tuple[list[int], list[int]]:
    """Return a chat's tokens, and the same as labels with -100 where nothing is to be learnt."""
    question = [{"role": "user", "content": text}]
    start = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    prompt = tokenizer.encode(start, add_special_tokens=False)
    answer = [*tokenizer.encode(text + "!", add_special_tokens=False), tokenizer.eos_token_id]
    return prompt + answer, [-100] * len(prompt) + answer


def batch(rows: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    """Return rows of one length, padded at the end."""
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
    labels = torch.tensor([labels + [-100] * (longest - len(labels)) for _, labels in rows])
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows])
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def push(name: str, folder: Path) -> str:
    """Upload a folder as the next version of an adapter; `peftserve adapters add NAME FOLDER` does the same."""
    files = [("files", (path.name, path.read_bytes())) for path in sorted(folder.glob("adapter_*"))]
    card = httpx.post(f"{URL}/v1/adapters", data={"name": name}, files=files, timeout=60).raise_for_status().json()
    return f"{card['name']}@{card['version']}"


def ask(model: str, text: str) -> str:
    body = {"model": model, "temperature": 0, "messages": [{"role": "user", "content": text}]}
    answer = httpx.post(f"{URL}/v1/chat/completions", json=body, timeout=60).raise_for_status().json()
    return answer["choices"][0]["message"]["content"]


with TemporaryDirectory() as folder:
    train(Path(folder))
    print("uploaded", push("excited", Path(folder)).partition("@")[0])

print(ask("demo", "silver signal forest"))
print(ask("excited", "silver signal forest"))
# > uploaded excited
# > silver signal forest
# > silver signal forest!
