import json
from pathlib import Path
from typing import Any

import pytest

from peftserve.adapters.errors import AdapterTooLarge, InvalidAdapter
from peftserve.adapters.files import (
    CONFIG,
    WEIGHTS,
    check_file_name,
    digest_of,
    expert_folder,
    experts_of,
    missing_file,
)


def configured(folder: Path, arrow: Any) -> Path:
    (folder / CONFIG).write_text(json.dumps({"arrow_config": arrow}))
    return folder


@pytest.mark.parametrize("arrow", [None, {}, "x", [1], {"task_adapter_names": None, "gks_adapter_names": "x"}])
def test_most_adapters_have_no_experts(tmp_path: Path, arrow: Any) -> None:
    assert experts_of(configured(tmp_path, arrow)) == []


def test_experts_are_those_of_both_lists_once(tmp_path: Path) -> None:
    arrow = {"task_adapter_names": ["b", "a", "b"], "gks_adapter_names": ["c", "a"]}
    assert experts_of(configured(tmp_path, arrow)) == ["b", "a", "c"]


@pytest.mark.parametrize("name", ["..", ".a", "a/b", "", "a" * 65, "ä", "a\n", 3, None])
def test_names_that_are_no_folder_s(tmp_path: Path, name: Any) -> None:
    with pytest.raises(InvalidAdapter, match="names an expert"):
        experts_of(configured(tmp_path, {"task_adapter_names": ["a", name]}))
    with pytest.raises(InvalidAdapter, match="not part of an adapter"):
        check_file_name(f"{name}/{CONFIG}" if name else f"/{CONFIG}") if isinstance(name, str) else check_file_name("x")


def test_too_many_experts(tmp_path: Path) -> None:
    with pytest.raises(AdapterTooLarge, match="over 256"):
        experts_of(configured(tmp_path, {"task_adapter_names": ["a"] * 257}))


def test_what_is_missing() -> None:
    own = [WEIGHTS, CONFIG]
    assert missing_file(own) is None
    assert missing_file([CONFIG]) == WEIGHTS
    assert missing_file([*own, f"a/{CONFIG}"]) == f"a/{WEIGHTS}"
    assert missing_file([*own, f"a/{CONFIG}", f"a/{WEIGHTS}"]) is None


def test_the_digest_does_not_depend_on_the_order_but_on_each_name() -> None:
    hashes = {CONFIG: "1", WEIGHTS: "2", f"A/{CONFIG}": "3", f"A/{WEIGHTS}": "4"}
    assert digest_of(hashes) == digest_of(dict(reversed(hashes.items())))
    assert digest_of(hashes) != digest_of({**hashes, f"A/{CONFIG}": "4", f"A/{WEIGHTS}": "3"})
    renamed = {name.replace("A/", "B/"): value for name, value in hashes.items()}
    assert digest_of(hashes) != digest_of(renamed)


def test_an_expert_is_below_the_adapter_s_folder_or_else_beside_it(tmp_path: Path) -> None:
    home = tmp_path / "router"
    assert expert_folder(home, "a") == tmp_path / "a"
    (home / "a").mkdir(parents=True)
    assert expert_folder(home, "a") == home / "a"
