"""Files and folders that the pages name are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", "examples/README.md", "deploy/README.md"]
PAGES += ["deploy/kubernetes/README.md"]
PAGES += sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))
PATH = re.compile(r"`((?:kernels|adapters|server|benchmarks|tests|docs|examples|deploy)/[\w./-]*\w/?)`")
MADE_UP = {"adapters/peft/example_method.py"}  # what CONTRIBUTING's example adds


@pytest.mark.parametrize("page", PAGES)
def test_paths_are_there(page: str) -> None:
    named = set(PATH.findall((ROOT / page).read_text(encoding="utf-8"))) - MADE_UP
    assert sorted(path for path in named if not (ROOT / path).exists()) == []
