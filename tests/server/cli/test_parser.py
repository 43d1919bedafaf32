import pytest

from peftserve.server.cli.main import main


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["serve", "--api-ke", "sk-1"], "no flag --api-ke; is --api-key meant?"),
        (["serve", "--api-kei=sk-1"], "no flag --api-kei; is --api-key meant?"),
        (["merge", "m", "--adapter", "a", "--out", "o", "--api-key", "sk-1"], "no flag --api-key"),
        (["adapters", "list", "--max-loras", "3"], "no flag --max-loras"),
        (["adapters", "list", "more"], "no place for 'more'"),
    ],
)
def test_unknown_words_are_one_line_without_their_values(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert said in error
    assert error.count("\n") == 1
    assert "sk-1" not in error
