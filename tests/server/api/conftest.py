import pytest

from peftserve.server.wire.messages import ModelInfo


@pytest.fixture(scope="session")
def model_info():
    """Makes a ModelInfo; every field can be given."""

    def make(**fields):
        defaults = {
            "model_name": "base",
            "architecture": "LlamaForCausalLM",
            "dtype": "float32",
            "device": "cpu",
            "vocab_size": 400,
            "max_model_len": 128,
            "eos_token_ids": [1],
            "num_kv_pages": 64,
            "page_size": 16,
            "max_running": 4,
            "max_loras": 8,
            "max_adapter_rank": 64,
            "tokenizer": None,
            "chat_template": None,
            "special_tokens": {},
            "pid": 0,
        }
        return ModelInfo(**{**defaults, **fields})

    return make
