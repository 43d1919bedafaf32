"""The test kit: tiny models, random adapters, and what PEFT answers with them. Tests get it as the fixture `oracle`."""

from transformers.utils.logging import disable_progress_bar

from .adapters import random_adapter, varied_adapters
from .models import ARCHITECTURES, BOS, EOS, PAD, VOCAB_SIZE, tiny_model, tiny_tokenizer
from .reference import Greedy, Mixture, PeftOracle
from .workload import Request, random_workload

disable_progress_bar()

__all__ = [
    "ARCHITECTURES",
    "BOS",
    "EOS",
    "PAD",
    "VOCAB_SIZE",
    "Greedy",
    "Mixture",
    "PeftOracle",
    "Request",
    "random_adapter",
    "random_workload",
    "tiny_model",
    "tiny_tokenizer",
    "varied_adapters",
]
