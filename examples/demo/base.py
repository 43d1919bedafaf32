"""Train the demo's base: a small Llama that continues lines of the demo's language and repeats what a user says."""

import math
from collections.abc import Iterator
from itertools import islice
from random import Random

import torch
from language import ASSISTANT, END, USER, documents
from torch.nn import functional as F
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

IGNORED = -100
Row = tuple[list[int], list[int]]  # token ids, and for each the label (IGNORED where nothing is to be learned)


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def chat_row(tokenizer: PreTrainedTokenizerFast, turns: list[tuple[str, str]]) -> Row:
    """Return a conversation as a row; only the assistant's words and the end token after them are learned."""
    ids, labels = [], []
    messages: list[dict[str, str]] = []
    for prompt, answer in turns:
        messages.append({"role": "user", "content": prompt})
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        asked = tokenizer(text, add_special_tokens=False).input_ids[len(ids) :]
        said = tokenizer(answer + tokenizer.eos_token, add_special_tokens=False).input_ids
        ids += asked + said
        labels += [IGNORED] * len(asked) + said
        messages.append({"role": "assistant", "content": answer})
    return ids, labels


def copying_rows(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[Row]:
    """Yield endless chats in which the assistant repeats random tokens: nothing but copying lowers the loss.

    A model that sees the language first learns its phrases and is slow to find copying; so this comes first.
    """
    random = Random(f"copying-{seed}")
    user, assistant, end = tokenizer.convert_tokens_to_ids([USER, ASSISTANT, END])
    first = assistant + 1  # the special tokens come before all others
    while True:
        said = [*random.choices(range(first, len(tokenizer)), k=random.randint(1, 12)), end]
        asked = [tokenizer.bos_token_id, user, *said, assistant]
        yield asked + said, [IGNORED] * len(asked) + said


def language_rows(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[Row]:
    """Yield endless training rows: chats in which the assistant repeats the user, documents, and random tokens."""
    random, lines, copies = Random(f"rows-{seed}"), documents(seed), copying_rows(tokenizer, seed + 1)
    while True:
        kind = random.random()
        if kind < 0.2:
            yield next(copies)
        elif kind < 0.85:
            turns = [(line, line) for line in islice(lines, 2 if kind < 0.35 else 1)]
            yield chat_row(tokenizer, turns)
        else:
            ids = tokenizer(next(lines) + tokenizer.eos_token).input_ids
            yield ids, list(ids)


def collate(rows: list[Row], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad rows on the right: ids and labels, (rows, longest) int64. Causal attention never sees the padding."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [pad_id] * (width - len(ids)) for ids, _ in rows])
    labels = torch.tensor([labels + [IGNORED] * (width - len(labels)) for _, labels in rows])
    return ids, labels


def shuffled(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    """Yield endless batches, as the rows come."""
    while True:
        yield list(islice(rows, size))


def bucketed(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    """Yield endless batches of rows of like length, so that little is padding."""
    random = Random(size)
    while True:
        pool = sorted(islice(rows, 8 * size), key=lambda row: len(row[0]))
        batches = [pool[i : i + size] for i in range(0, len(pool), size)]
        random.shuffle(batches)
        yield from batches


def train(
    model: torch.nn.Module,
    batches: Iterator[list[Row]],
    *,
    pad_id: int,
    steps: int,
    rate: float,
    label: str,
    autocast: bool = True,
) -> float:
    """Train every parameter that requires a gradient, by AdamW with warm-up and cosine decay. Returns the last loss.

    autocast: matrix products in bfloat16. What the model answers for virtual tokens before the text is left aside.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate_factor(step, steps))
    average = math.nan
    with tqdm(range(steps), desc=label, unit="step") as progress:
        for _ in progress:
            ids, labels = collate(next(batches), pad_id)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                logits = model(input_ids=ids).logits[:, -ids.shape[1] :]
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            average = loss.item() if math.isnan(average) else 0.95 * average + 0.05 * loss.item()
            progress.set_postfix(loss=f"{average:.4f}")
    return average


def _rate_factor(step: int, steps: int) -> float:
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
