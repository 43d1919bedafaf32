"""Other people's clients do what docs/clients.md says, against a server with the demo."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks.clients.table import FEATURES, INSTALLED, PYTHON, check_all, put, table, versions
from peftserve.server.demo import DEMO_ADAPTERS, DEMO_MODEL, DEMO_NAME

PAGE = Path(__file__).resolve().parents[3] / "docs" / "clients.md"


@pytest.fixture
def url(oracle: ModuleType, device: str, tmp_path: Path) -> Iterator[str]:
    flags = [flag for name, folder in DEMO_ADAPTERS.items() for flag in ("--adapter", f"{name}={folder}")]
    flags += ["--served-model-name", DEMO_NAME, "--device", device]
    flags += ["--override-generation-config", '{"temperature": 0}']  # or one answer in some dozens is cut off
    server = oracle.RunningServer.start(DEMO_MODEL, tmp_path / "state", tmp_path / "server.log", *flags)
    try:
        yield server.url
    finally:
        server.stop()


@pytest.mark.slow
@pytest.mark.skipif(not (PYTHON.parents[1] / ".done").exists(), reason="the clients are not installed: make clients")
def test_every_client_does_all_that_the_page_says(url: str) -> None:
    found = check_all(INSTALLED, url)
    assert {(client, feature): error for client, features in found.items() for feature, error in features.items()} == {
        (client, feature): None for client, features in found.items() for feature in features
    }
    page = PAGE.read_text(encoding="utf-8")
    assert page == put(page, "clients", table(found)), (
        "docs/clients.md is not what was found: run benchmarks.clients.table"
    )


def test_a_row_tells_what_works_what_does_not_and_what_a_client_has_not() -> None:
    row = table({"openai": {"chat": None, "tools": "no such thing"}}).splitlines()[-1]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[0] == f"openai {versions()['openai']}"
    assert dict(zip(FEATURES, cells[1:], strict=True)) == {**dict.fromkeys(FEATURES, ""), "chat": "yes", "tools": "no"}


def test_every_client_has_a_version() -> None:
    assert [*versions()] == sorted(client.name for client in INSTALLED)
