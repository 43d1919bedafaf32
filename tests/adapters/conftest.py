"""Fixtures of the adapters' tests: well-formed files without a model, and a store with its registry."""

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from peftserve.adapters.facts import AdapterFacts
from peftserve.adapters.files import CONFIG, WEIGHTS
from peftserve.adapters.registry import AdapterRegistry
from peftserve.adapters.staging import StagedUpload
from peftserve.adapters.store import AdapterStore

SafetensorsBytes = Callable[..., bytes]


@pytest.fixture(scope="session")
def safetensors_bytes() -> SafetensorsBytes:
    """Builds a file of a header and data. header: an object, or its text."""

    def build(header: Mapping[str, Any] | bytes, data: bytes = b"") -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data

    return build


@pytest.fixture(scope="session")
def facts() -> AdapterFacts:
    return AdapterFacts("LORA", rank=8, num_bytes=100, primitives={"low_rank": 2}, sites=2, consumed=4)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AdapterStore]:
    store = AdapterStore(tmp_path / "state")
    yield store
    store.close()


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[AdapterRegistry]:
    registry = AdapterRegistry(tmp_path / "registry.sqlite")
    yield registry
    registry.close()


@pytest.fixture
def router_upload(store: AdapterStore, safetensors_bytes: SafetensorsBytes) -> Callable[..., StagedUpload]:
    """Stages an adapter that routes between the experts `named`, with the files of those `sent`. weights: by expert."""

    def stage(named: Sequence[str], sent: Sequence[str], weights: Mapping[str, bytes] = {}) -> StagedUpload:
        staged = store.stage(1 << 20)
        arrow = {"top_k": 1, "task_adapter_names": named}
        for part in ("", *sent):
            prefix = f"{part}/" if part else ""
            config = {"peft_type": "LORA", "target_modules": ["q_proj"]} | ({} if part else {"arrow_config": arrow})
            with staged.open(prefix + CONFIG) as file:
                file.write(json.dumps(config if part or named else {**config, "arrow_config": None}).encode())
            with staged.open(prefix + WEIGHTS) as file:
                file.write(weights.get(part, safetensors_bytes({})))
        return staged

    return stage


@pytest.fixture
def upload(store: AdapterStore, safetensors_bytes: SafetensorsBytes) -> Callable[..., StagedUpload]:
    """Stages a complete, well-formed upload, whose digest depends on `content`."""

    def stage(content: str = "", limit: int = 1 << 20) -> StagedUpload:
        staged = store.stage(limit)
        with staged.open(CONFIG) as file:
            config = {"peft_type": "LORA", "target_modules": ["q_proj"], "base_model_name_or_path": content}
            file.write(json.dumps(config).encode())
        with staged.open(WEIGHTS) as file:
            file.write(safetensors_bytes({}))
        return staged

    return stage
