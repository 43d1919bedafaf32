"""Merges in this process, and PEFT's own of the same adapters."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraModel
from peft.utils.save_and_load import get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from peftserve.adapters.merging.kinds import Options
from peftserve.adapters.merging.plan import MergeSource, plan_merge
from peftserve.adapters.merging.run import run_merge, seeded

Weighted = Sequence[tuple[Path, float]]


@pytest.fixture
def merge(tmp_path: Path) -> Callable[..., Path]:
    """Merges adapters by `Options(**options)` and returns the folder of the result."""
    count = iter(range(1000))

    def run(weighted: Weighted, **options: Any) -> Path:
        folder = tmp_path / f"merged-{next(count)}"
        folder.mkdir()
        sources = [MergeSource(path.name, str(path), weight) for path, weight in weighted]
        run_merge(plan_merge(sources, Options(**options)), folder, lambda done, total: None)
        return folder

    return run


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(folder / "adapter_model.safetensors")
    return found


class PeftMerger:
    """A base with adapters, merged by PEFT. Adapters are called by the names of their folders."""

    def __init__(self, base: Path, adapters: Sequence[Path]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
            self.model = PeftModel.from_pretrained(model, adapters[0], adapter_name=adapters[0].name)
            for adapter in adapters[1:]:
                self.model.load_adapter(adapter, adapter.name)
        modules = self.model.base_model.model.named_modules()
        self._names = {id(module): name for name, module in modules}

    def merge(self, weighted: Weighted, options: Options) -> dict[str, torch.Tensor]:
        """Return the tensors that PEFT would save, those of the base left out; draws are ours, module by module."""
        names, weights = [path.name for path, _ in weighted], [weight for _, weight in weighted]
        with warnings.catch_warnings(), self._our_draws(options):
            warnings.simplefilter("ignore")
            self.model.add_weighted_adapter(
                names,
                weights,
                "merged",
                combination_type=options.combination_type,
                svd_rank=options.svd_rank,
                density=options.density,
                majority_sign_method=options.majority_sign_method,
            )
            found = get_peft_model_state_dict(self.model, adapter_name="merged", save_embedding_layers=False)
            self.model.delete_adapter("merged")
        return {key: tensor for key, tensor in found.items() if "lora_" in key}

    @contextmanager
    def _our_draws(self, options: Options) -> Iterator[None]:
        """Let PEFT draw the numbers that we draw. It draws for a delta in the layout of the stored weight."""
        now: dict[str, Any] = {}
        patch = pytest.MonkeyPatch()

        def bernoulli(input: torch.Tensor) -> torch.Tensor:
            shape = input.T.shape if now["transposed"] else input.shape
            drawn = (torch.rand(shape, generator=now["generator"]) < options.density).float()
            return drawn.T if now["transposed"] else drawn

        def following(method: Any, deltas: bool, place: int) -> Any:
            def call(model: Any, *arguments: Any, **named: Any) -> Any:
                target = arguments[place]
                now["generator"] = seeded(options, self._names[id(target)])
                now["transposed"] = deltas and (
                    getattr(target, "fan_in_fan_out", False) or len(target.lora_embedding_A) > 0
                )
                return method(model, *arguments, **named)

            return call

        for name, deltas, place in (
            ("_generalized_task_arithmetic_weighted_adapter", False, 3),
            ("_svd_generalized_task_arithmetic_weighted_adapter", True, 4),
        ):
            patch.setattr(LoraModel, name, following(getattr(LoraModel, name), deltas, place))
        patch.setattr(torch, "bernoulli", bernoulli)
        try:
            yield
        finally:
            patch.undo()


@pytest.fixture(scope="session")
def peft_merger() -> type[PeftMerger]:
    return PeftMerger


@pytest.fixture(scope="session")
def tensors_of() -> Callable[[Path], dict[str, torch.Tensor]]:
    return tensors


@pytest.fixture(scope="session")
def make_adapters(
    oracle: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Path, list[Path]]]:
    """Has PEFT write a tiny base of an architecture, and an adapter on it for each set of options of `LoraConfig`."""

    def make(architecture: str, *options: dict[str, Any]) -> tuple[Path, list[Path]]:
        folder = tmp_path_factory.mktemp(architecture)
        base = oracle.tiny_model(architecture, 1, folder / "base")
        paths = [
            oracle.random_adapter(base, folder / "abcdefgh"[seed], seed + 1, **own) for seed, own in enumerate(options)
        ]
        return base, paths

    return make
