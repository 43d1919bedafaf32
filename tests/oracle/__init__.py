"""The test kit: tiny models, random adapters, what PEFT answers with them, and a real
server with its clients. Tests get it as the fixture `oracle`.
"""

from peft import PeftModel
from peft.tuners.boft import layer as boft
from transformers.utils.logging import disable_progress_bar

from .adapters import random_adapter, varied_adapters
from .catalog import CATALOG, Kind, is_fault, kind_of
from .client import Answer, Client
from .gguf import GGUF_TYPES, gguf_model
from .methods import (
    method_adapter,
    naive_logits,
    peft_generate,
    peft_logits,
    peft_mixture,
    peft_model,
    peft_scaled,
    plain_model,
    shaken,
)
from .models import ARCHITECTURES, BOS, EOS, PAD, VOCAB_SIZE, read_model, tiny_model, tiny_tokenizer
from .quantised import QUANTISED_FORMS, CodesLinear, CodesTensor, quantised_model
from .reference import CLEAR, Greedy, Mixture, PeftOracle
from .running_server import RunningServer, adapter_files, children_of
from .scraper import PodState, families_of, lora_score, pod_state
from .workload import Request, random_workload
from .wrapped import WRAPPED, text_model, wrapped_model

disable_progress_bar()
# The README.md of a checkpoint, which nobody reads, took a third of the time that PEFT takes to make one.
PeftModel.create_or_update_model_card = lambda self, output_dir: None
# Where CUDA's compiler is, PEFT would try at each layer of BOFT to build an extension for weights that are on the CPU.
boft._FBD_CUDA = False

__all__ = [
    "ARCHITECTURES",
    "BOS",
    "CATALOG",
    "CLEAR",
    "EOS",
    "GGUF_TYPES",
    "PAD",
    "QUANTISED_FORMS",
    "VOCAB_SIZE",
    "WRAPPED",
    "Answer",
    "Client",
    "CodesLinear",
    "CodesTensor",
    "Greedy",
    "Kind",
    "Mixture",
    "PeftOracle",
    "PodState",
    "Request",
    "RunningServer",
    "adapter_files",
    "children_of",
    "families_of",
    "gguf_model",
    "is_fault",
    "kind_of",
    "lora_score",
    "method_adapter",
    "naive_logits",
    "peft_generate",
    "peft_logits",
    "peft_mixture",
    "peft_model",
    "peft_scaled",
    "plain_model",
    "pod_state",
    "quantised_model",
    "random_adapter",
    "random_workload",
    "read_model",
    "shaken",
    "text_model",
    "tiny_model",
    "tiny_tokenizer",
    "varied_adapters",
    "wrapped_model",
]
