"""The model of the CPU's benchmarks: the SmolLM2-135M shape with random weights, its adapters and its prompts."""

from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

RANKS = (8, 16, 32, 64, 8, 16, 32, 64)


@dataclass(frozen=True)
class Work:
    """The requests of a run. Every one has as many tokens of prompt and, whatever they are, of output."""

    num_requests: int = 16
    prompt_tokens: int = 128
    output_tokens: int = 64
    vocabulary: int = 49152

    def prompts(self, seed: int) -> list[list[int]]:
        random = Random(seed)
        return [random.choices(range(3, self.vocabulary), k=self.prompt_tokens) for _ in range(self.num_requests)]

    @property
    def num_output_tokens(self) -> int:
        return self.num_requests * self.output_tokens


def write_base(folder: Path) -> None:
    """Write a base with random weights in bfloat16."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer whose tokens are their ids' digits, so that servers which take only text get the same ids."""
    special = {0: "<s>", 2: "<pad>"}
    vocabulary = {special.get(token, str(token)): token for token in range(Work.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<s>", pad_token="<pad>").save_pretrained(folder)


def write_adapters(base: Path, store: Path) -> list[str]:
    """Write random adapters on all linears, one of each rank in RANKS, in folders of the store.

    Return the folders' names.
    """
    digests = []
    for index, rank in enumerate(RANKS):
        torch.manual_seed(1 + index)
        digest = f"{index:064x}"
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", init_lora_weights=False)
        model = get_peft_model(LlamaForCausalLM.from_pretrained(base, dtype=torch.bfloat16), config)
        model.to(torch.bfloat16).save_pretrained(store / digest)
        digests.append(digest)
    return digests
