"""What is known is not tried again; the worst verdict counts."""

from pathlib import Path

import pytest

from benchmarks.model_types.main import main, worst
from benchmarks.model_types.page import BEGIN, END
from benchmarks.records import append


def test_verdicts_that_are_recorded_become_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, page = tmp_path / "out.jsonl", tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    exact = dict.fromkeys(("base", "LoRA", "IA3", "DoRA"), "exact")
    append(out, type="llama", seed=0, hidden=None, seconds=1.0, verdicts=exact)
    append(out, type="bloom", seed=0, hidden=None, seconds=1.0, verdicts=exact | {"DoRA": "wrong: a|b <c>"})
    append(out, type="bloom", seed=1, hidden=None, seconds=1.0, verdicts=exact)
    assert main(["--types", "llama,bloom", "--out", str(out), "--table", str(page)]) == 1
    assert capsys.readouterr().out == "1 exact, 1 wrong\n"
    text = page.read_text()
    assert "old" not in text
    assert "| `bloom` | exact | exact | exact | wrong | a\\|b &lt;c> |" in text
    assert "| `llama` | exact | exact | exact | exact |  |" in text
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")


def test_types_that_are_not_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--types", "llama,lama"]) == 2
    assert "no causal type lama" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--hidden", "64", "--heads", "3"], "3 heads of 2 KV heads do not fit a hidden size of 64"),
        (["--methods", "LoRA,LoFTQ"], "no LoFTQ; there are LoRA, "),
        (["--methods", "LoRA", "--table", "page.md"], "the table is of LoRA, IA3, DoRA"),
    ],
)
def test_settings_that_do_not_fit_are_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(words)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["exact", "not in PEFT: no"], "exact"),
        (["exact", "refused: no"], "refused"),
        (["refused: no", "wrong: token 1", "exact"], "wrong"),
        (["not built: no"], "not built"),
    ],
)
def test_the_worst_verdict(verdicts: list[str], expected: str) -> None:
    assert worst(verdicts) == expected
