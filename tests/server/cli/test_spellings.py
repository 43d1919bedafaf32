import argparse
from typing import Any

import pytest

from peftserve.server.cli import resolution
from peftserve.server.cli.parser import Parser
from peftserve.server.cli.settings.table import SETTINGS
from peftserve.server.cli.spellings import SPELLINGS


def given(*words: str) -> dict[str, Any]:
    parser = Parser(prog="peftserve serve")
    resolution.add_arguments(parser)
    return resolution.resolve(vars(parser.parse_args(words, argparse.Namespace())), {})


def test_each_spelling_is_the_setting_that_it_stands_for() -> None:
    chosen = given(
        *("--model", "org/m", "--max-num-seqs", "7", "--max-num-batched-tokens", "512", "--block-size", "32"),
        *("--no-enable-prefix-caching", "--uvicorn-log-level", "trace", "--enable-log-requests", "--dtype", "half"),
        *("-q", "bitsandbytes"),
    )
    assert chosen["quantization"] == "bitsandbytes"
    assert given("--quantization", "none") == given()
    assert (chosen["model"], chosen["max_running"], chosen["max_batch_tokens"]) == ("org/m", 7, 512)
    assert (chosen["page_size"], chosen["prefix_caching"]) == (32, False)
    assert (chosen["log_level"], chosen["access_log"], chosen["dtype"]) == ("debug", "text", "float16")


def test_what_asks_for_nothing_else_changes_nothing() -> None:
    words = ["--disable-log-requests", "--swap-space", "4", "-tp", "1", "--kv-cache-dtype", "auto", "--seed", "0"]
    assert given(*words, "--enable-chunked-prefill", "--load-format", "safetensors") == given()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--pipeline-parallel-size", "2"], "--tensor-parallel-size"),
        (["--gpu-memory-utilization", "0.9"], "--kv-cache-tokens"),
        (["--no-enable-chunked-prefill"], "always taken in chunks"),
        (["--max-num-seqs", "many"], "max-running"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((SystemExit, resolution.CommandError)) as stopped:
        given(*words)
    assert said in capsys.readouterr().err + str(stopped.value)


def test_they_stand_for_settings_and_hide_none() -> None:
    own = {setting.name for setting in SETTINGS[1:]}
    assert not own & {spelling.name for spelling in SPELLINGS}
    parser = argparse.ArgumentParser()
    resolution.add_arguments(parser)
    assert "--max-num-seqs" not in parser.format_help()
