"""The adapters of a trial: what PEFT makes of a model for each method, with random weights."""

import warnings
from pathlib import Path

import peft
import torch
from transformers import PreTrainedModel

from .methods import METHODS


def make_adapter(model: PreTrainedModel, method: str, seed: int, folder: Path) -> peft.PeftModel:
    """Write a checkpoint of a method, and return the model with the adapter as PEFT has it. Raises what PEFT raises.

    PEFT may read its own file otherwise than it wrote it, where it takes a linear's name for one of stacked experts.
    """
    generator = torch.Generator().manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)  # of what PEFT draws: the same whatever was made before
        adapted = peft.get_peft_model(model, METHODS[method].config(model))
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(METHODS[method].spread * torch.randn(parameter.shape, generator=generator))
        adapted.save_pretrained(str(folder))
    return adapted.eval()
