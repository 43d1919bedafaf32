"""What the API is told of the model: all that it needs to read requests and write answers without it."""

import os

from ..config import EngineConfig
from ..model_files import model_id
from ..wire.messages import ModelInfo
from .model.fingerprint import fingerprint
from .model.loading import LoadedModel, vocabulary_size
from .model.sampling_defaults import sampling_defaults
from .model.tokenizer_facts import eos_token_ids, tokenizer_facts


def describe_model(
    config: EngineConfig, loaded: LoadedModel, num_pages: int, max_model_len: int, num_graphs: int | None
) -> ModelInfo:
    """Describe the model and this process.

    num_pages: of the KV cache. max_model_len: tokens of the longest sequence that fits. num_graphs: None on a host.
    """
    tokenizer, template, special, eos = tokenizer_facts(config.model, config.trust_remote_code)
    return ModelInfo(
        model_name=model_id(config.model),
        architecture=type(loaded.model).__name__,
        dtype=str(loaded.model.dtype).removeprefix("torch."),
        device=str(loaded.model.device),
        vocab_size=vocabulary_size(loaded.twin),  # which is whole, where the model is divided
        max_model_len=max_model_len,
        eos_token_ids=sorted(eos_token_ids(loaded.model, eos)),
        num_kv_pages=num_pages,
        page_size=config.page_size,
        max_running=config.max_running,
        max_loras=config.max_loras,
        max_adapter_rank=config.max_lora_rank,
        tokenizer=tokenizer,
        chat_template=template,
        special_tokens=special,
        pid=os.getpid(),
        fingerprint=fingerprint(config.model),
        cuda_graphs=num_graphs,
        hidden_size=loaded.hidden.width,
        num_layers=loaded.hidden.num_layers,
        sampling_defaults=sampling_defaults(
            config.model, config.generation_config, config.override_generation_config, config.trust_remote_code
        ),
    )
