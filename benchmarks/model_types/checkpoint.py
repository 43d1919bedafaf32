"""A small random checkpoint of a type of model. Weights are large enough for every part to matter in the logits."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from .shrinking import Shape, small_config

_STRENGTH = 1.5  # of a matrix, times the one that keeps the size of what it multiplies
_NOISE = 0.2  # added to vectors: norms and biases are not the identity
_EMBEDDING = 0.3


def write_checkpoint(model_type: str, shape: Shape, seed: int, folder: Path) -> PreTrainedModel:
    """Write the checkpoint, and return the model. Raises whatever transformers says of what cannot be built."""
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(small_config(model_type, shape), dtype=torch.float32)
    model.eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    embedding = getattr(model.get_input_embeddings(), "weight", None)
    for parameter in model.parameters():
        _draw(parameter, parameter is embedding, generator)
    model.generation_config.do_sample = False
    model.save_pretrained(folder)
    return model


def _draw(parameter: torch.Tensor, is_embedding: bool, generator: torch.Generator) -> None:
    noise = torch.randn(parameter.shape, generator=generator)
    if is_embedding:
        parameter.copy_(_EMBEDDING * noise)
    elif parameter.dim() == 1:
        parameter.add_(_NOISE * noise)
    else:
        parameter.copy_(_STRENGTH * noise / parameter.shape[-1] ** 0.5)
