from pathlib import Path

import pytest

from peftserve.server.cli.main import main
from peftserve.server.cli.model_check import check_model


def test_one_line_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    said = {
        "/nonexistent": "there is no folder '/nonexistent'",
        str(tmp_path): "holds no config.json: give the folder",
        str(tmp_path / "adapter"): "but an adapter: give its base",
        str(tmp_path / "adapter" / "adapter_config.json"): "is a file",
        str(tmp_path / "broken"): "is no JSON",
        "two words": "no hub id",
    }
    for model, part in said.items():
        assert main(["serve", model]) == 2
        error = capsys.readouterr().err
        assert part in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("model", ["gpt2", "meta-llama/Llama-3.2-1B"])
def test_hub_ids_pass(model: str) -> None:
    check_model(model)
