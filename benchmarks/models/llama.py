"""The model of the GPU's benchmarks: Llama's layers with the widths of an 8B model, random weights, random adapters."""

import hashlib
import shutil
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from peftserve.adapters.files import CONFIG, WEIGHTS, digest_of

RANK = 16
WIDTHS = {
    "8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "1b": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "135m": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "tiny": {
        "vocab_size": 2048,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
    },
}
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ROOM = 40 << 30  # bytes: what 32 layers and their adapters take, and some to spare


def make_config(shape: str, layers: int) -> LlamaConfig:
    return LlamaConfig(
        **WIDTHS[shape], num_hidden_layers=layers, max_position_embeddings=8192, eos_token_id=None, bos_token_id=None
    )


def scratch_folder() -> Path | None:
    """Return a folder in memory if it has room for the base; None for the system's own temporary folder."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and shutil.disk_usage(memory).free > ROOM else None


def linears_of(config: LlamaConfig) -> dict[str, tuple[int, int]]:
    """Return (in, out) features of each linear of a layer."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    h, m = config.hidden_size, config.intermediate_size
    q, kv = config.num_attention_heads * head, config.num_key_value_heads * head
    return dict(zip(LINEARS, [(h, q), (h, kv), (h, kv), (q, h), (h, m), (h, m), (m, h)], strict=True))


def write_base(folder: Path, config: LlamaConfig, dtype: torch.dtype, device: str) -> int:
    """Write a base with random weights; return the bytes that a step reads: all weights but the embedding."""
    torch.manual_seed(0)
    with torch.device(device):
        torch.set_default_dtype(dtype)
        model = LlamaForCausalLM(config)
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    embedding = model.get_input_embeddings().weight
    return sum(p.nbytes for p in model.parameters()) - embedding.nbytes


def write_adapters(base: Path, store: Path, count: int, rank: int = RANK) -> list[str]:
    """Write LoRA of a rank on all linears, each in a folder of the store named by its digest; return the digests.

    All have the same numbers, in one file. To the engine they are different adapters, whose configurations differ, and
    each has memory of its own.
    """
    factors = store / "factors"
    factors.parent.mkdir(parents=True, exist_ok=True)
    save_file(_factors(LlamaConfig.from_pretrained(base), rank), factors)
    hashed = _sha256(factors)
    return [_write_adapter(store, factors, hashed, f"base {index}", rank) for index in range(count)]


def _write_adapter(store: Path, factors: Path, hashed: str, base_name: str, rank: int) -> str:
    folder = store / base_name
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(LINEARS), task_type="CAUSAL_LM")
    config.base_model_name_or_path = base_name
    config.save_pretrained(folder)
    (folder / WEIGHTS).hardlink_to(factors)
    digest = digest_of({CONFIG: _sha256(folder / CONFIG), WEIGHTS: hashed})
    (folder / "README.md").unlink(missing_ok=True)
    folder.rename(store / digest)
    return digest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _factors(config: LlamaConfig, rank: int) -> dict[str, torch.Tensor]:
    """Return factors whose delta is about a tenth of the output that it is added to."""
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for layer in range(config.num_hidden_layers):
        for name, (width, out) in linears_of(config).items():
            module = f"base_model.model.model.layers.{layer}.{'mlp' if name in LINEARS[4:] else 'self_attn'}.{name}"
            for factor, shape, scale in (("A", (rank, width), width**-0.5), ("B", (out, rank), 0.1 * rank**-0.5)):
                values = torch.randn(shape, generator=generator) * scale
                tensors[f"{module}.lora_{factor}.weight"] = values.to(torch.bfloat16)
    return tensors
