import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from peftserve.adapters.errors import InvalidAdapter
from peftserve.adapters.files import CONFIG, WEIGHTS
from peftserve.adapters.settling import settle
from peftserve.adapters.upload_names import INDEX

TENSORS = {f"layer.{i}.weight": torch.arange(i * 3, dtype=torch.float32).reshape(i, 3) for i in range(4)}


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def fill(folder: Path, *files: str, config: object = None) -> Path:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(json.dumps(config or {}))
    return folder


def shard(folder: Path, cuts: list[list[str]]) -> None:
    folder.mkdir(exist_ok=True)
    where = {}
    for i, keys in enumerate(cuts, 1):
        file = f"adapter_model-{i:05}-of-{len(cuts):05}.safetensors"
        save_file({key: TENSORS[key] for key in keys}, folder / file)
        where |= dict.fromkeys(keys, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))


def test_a_folder_that_was_sent_loses_its_name_and_what_is_no_experts(tmp_path: Path) -> None:
    arrow = {"arrow_config": {"task_adapter_names": ["mine"]}}
    fill(tmp_path, f"mine/{CONFIG}", f"mine/{WEIGHTS}", f"mine/mine/{CONFIG}", f"mine/mine/{WEIGHTS}", config=arrow)
    fill(tmp_path, "mine/tokenizer.json", "mine/mine/tokenizer.json", f"mine/other/{CONFIG}")
    assert settle(tmp_path)
    assert names(tmp_path) == {CONFIG, WEIGHTS, "tokenizer.json", f"mine/{CONFIG}", f"mine/{WEIGHTS}"}


def test_files_that_are_in_order_are_left_alone(tmp_path: Path) -> None:
    fill(
        tmp_path, CONFIG, WEIGHTS, f"a/{CONFIG}", f"a/{WEIGHTS}", config={"arrow_config": {"task_adapter_names": ["a"]}}
    )
    before = names(tmp_path)
    assert not settle(tmp_path)
    assert names(tmp_path) == before


@pytest.mark.parametrize(
    "root", ["checkpoint-500", "saves/llama/lora/sft", "models--me--x/snapshots/0123abcd", "default"]
)
def test_the_one_adapter_is_found_however_deep(tmp_path: Path, root: str) -> None:
    fill(tmp_path, f"{root}/{CONFIG}", f"{root}/{WEIGHTS}", f"{root}/reference/{CONFIG}", "runs/tokenizer.json")
    assert settle(tmp_path)
    assert names(tmp_path) == {CONFIG, WEIGHTS}


def test_folders_beside_an_adapter_are_dropped(tmp_path: Path) -> None:
    """Those that PEFT saves other adapters in, and checkpoints that came before the adapter."""
    fill(tmp_path, CONFIG, WEIGHTS, f"checkpoint-5/{CONFIG}", f"reference/{CONFIG}", f"reference/{WEIGHTS}")
    assert settle(tmp_path)
    assert names(tmp_path) == {CONFIG, WEIGHTS}


def test_of_several_adapters_none_is_taken_unless_one_is_the_others_router(tmp_path: Path) -> None:
    fill(tmp_path, f"runs/a/{CONFIG}", f"runs/a/{WEIGHTS}", f"runs/b/{CONFIG}", f"runs/b/{WEIGHTS}")
    with pytest.raises(InvalidAdapter, match="several adapters, in runs/a, runs/b; send the files of one"):
        settle(tmp_path)
    arrow = {"arrow_config": {"task_adapter_names": ["a", "b"]}}
    fill(tmp_path, f"runs/router/{CONFIG}", f"runs/router/{WEIGHTS}", config=arrow)
    assert settle(tmp_path)
    assert names(tmp_path) == {f"{place}{file}" for place in ("", "a/", "b/") for file in (CONFIG, WEIGHTS)}


@given(st.lists(st.integers(0, 2), min_size=len(TENSORS), max_size=len(TENSORS)))
def test_weights_in_several_files_become_one(tmp_path_factory: pytest.TempPathFactory, places: list[int]) -> None:
    folder = tmp_path_factory.mktemp("shards")
    cuts = [[key for key, place in zip(TENSORS, places, strict=True) if place == i] for i in range(3)]
    shard(folder / "mine", [cut for cut in cuts if cut])
    fill(folder, f"mine/{CONFIG}")
    assert settle(folder)
    assert names(folder) == {CONFIG, WEIGHTS}
    found = load_file(folder / WEIGHTS)
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[key], TENSORS[key]) for key in TENSORS)


def test_an_index_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, CONFIG)
    shard(tmp_path, [list(TENSORS)[:2], list(TENSORS)[2:]])
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"]["extra"] = "adapter_model-00001-of-00002.safetensors"
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(InvalidAdapter, match=r"does not say what the files hold; .*extra"):
        settle(tmp_path)
    (tmp_path / "adapter_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InvalidAdapter, match=r"files of weights that are missing: adapter_model-00002-of-00002"):
        settle(tmp_path)
    (tmp_path / INDEX).unlink()
    with pytest.raises(InvalidAdapter, match="is missing"):
        settle(tmp_path)
