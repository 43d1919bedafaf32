"""A record counts for the setting that it was made in, and for no other."""

from benchmarks.model_types.main import parse_arguments
from benchmarks.model_types.setting import Setting

WORDS = ["--seed", "2", "--layers", "4"]


def test_a_record_is_of_its_own_setting() -> None:
    setting = Setting.of(parse_arguments(WORDS))
    record = {"type": "llama", **setting.fields()}
    assert setting.is_of(record)
    for others in (["--tied", "0"], ["--methods", "LoRA,VeRA"], ["--lengths", "70"], ["--seed", "3"]):
        assert not Setting.of(parse_arguments([*WORDS, *others])).is_of(record)


def test_a_record_that_says_no_sizes_has_those_of_its_seed() -> None:
    assert Setting.of(parse_arguments([])).is_of({"type": "llama", "seed": 0, "hidden": None})
    assert not Setting.of(parse_arguments(["--hidden", "96"])).is_of({"type": "llama", "seed": 0, "hidden": None})
