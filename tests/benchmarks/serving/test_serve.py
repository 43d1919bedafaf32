from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from peftserve.server.cli.main import make_parser

Script = Callable[[str], ModuleType]


@pytest.fixture
def models(script: Script, tmp_path: Path) -> Any:
    return script("serving.presets").Models(
        tmp_path / "base", {"ad0": tmp_path / "0", "ad1": tmp_path / "1"}, tmp_path, "float32"
    )


def test_the_command_is_one_that_the_server_takes(script: Script, models: Any) -> None:
    serve = script("serving.serve")
    words = serve.make_preset("cuda", serve.SIZES["8b"]).words(models, 81)
    given = vars(make_parser().parse_args(words[3:]))
    assert words[1:3] == ["-m", "peftserve.server.cli.main"]
    assert {name: given[name] for name in ("device", "max_loras", "max_batch_tokens", "port")} == {
        "device": "cuda", "max_loras": "64", "max_batch_tokens": "8192", "port": "81",
    }  # fmt: skip
    assert len(given["adapter"]) == 2


def test_each_trace_can_be_drawn_at_both_sizes(script: Script, models: Any) -> None:
    serve = script("serving.serve")
    for settings in serve.TRACES.values():
        whole, small = (serve.make_load(settings, models, small=each) for each in (False, True))
        assert len(small.trace) < 32 < len(whole.trace)
    full, mixed, arrivals = (serve.make_load(settings, models, small=False) for settings in serve.TRACES.values())
    assert {request.model for request in full.trace} == {"base"}
    assert {request.model for request in mixed.trace} == {request.model for request in arrivals.trace} == {"ad0", "ad1"}
    assert full.concurrency == 64
    assert arrivals.trace[-1].arrival is not None


def test_a_checkout_that_is_not_installed_gets_a_version(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve = script("serving.serve")
    assert serve.with_metadata({"A": "b"}, tmp_path) == {"A": "b"}

    def unknown(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(serve, "version", unknown)
    changed = serve.with_metadata({"PYTHONPATH": "/x"}, tmp_path)
    folder, rest = changed["PYTHONPATH"].split(":")
    assert rest == "/x"
    (metadata,) = Path(folder).glob("peftserve-*.dist-info/METADATA")
    assert "Name: peftserve" in metadata.read_text()
