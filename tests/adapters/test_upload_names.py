import re

import pytest

from peftserve.adapters.errors import InvalidAdapter
from peftserve.adapters.files import COMPANIONS, CONFIG, WEIGHTS
from peftserve.adapters.upload_names import INDEX, is_surpassed, is_whole, place_of, why_nothing

KEPT = [CONFIG, WEIGHTS, INDEX, *COMPANIONS, "adapter_model-00001-of-00002.safetensors"]
LEFT_BY_TRAINERS = [
    *("README.md", ".gitattributes", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"),
    *("trainer_state.json", "vocab.json", "merges.txt", "tokenizer.model", "runs/Nov27/events.out.tfevents.1"),
    *("x/checkpoint-500/adapter_config.json", "adapter_model.bin", "all_results.json", "head_config.json"),
]


@pytest.mark.parametrize("name", KEPT)
def test_files_of_an_adapter_are_kept_also_in_the_folder_that_was_sent(name: str) -> None:
    assert place_of(name) == place_of(f"./{name}") == name
    assert place_of(f"mine/{name}") == place_of(f"mine\\{name}") == f"mine/{name}"
    assert place_of(f"a/b/c/d/{name}") == f"a/b/c/d/{name}"
    assert place_of("a/" * 16 + name) is None


def test_folders_whose_names_no_expert_has_get_others() -> None:
    mine, other = place_of(f"my adapter/{CONFIG}"), place_of(f"mein Ordner ü/{CONFIG}")
    assert mine == place_of(f"my adapter\\{CONFIG}")
    assert re.fullmatch(rf"sent-[0-9a-f]{{16}}/{CONFIG}", mine or "")
    assert mine != other


def test_a_checkpoint_is_an_adapter_unless_one_is_beside_it() -> None:
    place = place_of(f"checkpoint-500/{CONFIG}")
    assert place == f"checkpoint-500/{CONFIG}"
    assert is_surpassed(place, {CONFIG})
    assert not is_surpassed(place, {WEIGHTS})
    assert not is_surpassed(f"expert/{CONFIG}", {CONFIG})
    assert place_of(f"out/checkpoint-500/{CONFIG}") is None


def test_numbers_of_files_say_whether_all_are_there() -> None:
    one, two = "adapter_model-00001-of-00002.safetensors", "adapter_model-00002-of-00002.safetensors"
    assert is_whole([two, one])
    assert is_whole(["adapter_model_0_of_2.safetensors", "adapter_model_1_of_2.safetensors"])
    for shards in ([], [one], [one, one], [one, "adapter_model-00002-of-00003.safetensors"]):
        assert not is_whole(shards)


@pytest.mark.parametrize("name", LEFT_BY_TRAINERS)
def test_what_trainers_leave_is_skipped(name: str) -> None:
    assert place_of(name) is None
    assert place_of(f"mine/{name}") is None


def test_adapterhubs_weights_get_pefts_name() -> None:
    assert place_of("adapter.safetensors") == WEIGHTS
    assert place_of("mine/adapter.safetensors") == f"mine/{WEIGHTS}"


@pytest.mark.parametrize("name", ["", "/etc/passwd", "a/../b", "../adapter_config.json", "..", "a\0b", "\\x"])
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(InvalidAdapter, match="not part of an adapter"):
        place_of(name)


@pytest.mark.parametrize("name", ["mine.zip", "mine.TAR.gz", "a/mine.tgz"])
def test_archives_are_skipped_and_alone_are_refused_with_what_to_send_instead(name: str) -> None:
    assert place_of(name) is None
    assert "curl -F name=NAME" in (why_nothing(["README.md", name]) or "")


def test_pickled_weights_are_known_from_other_pickles() -> None:
    for name in ["adapter_model.bin", "x/pytorch_adapter.bin", "pytorch_model.pt"]:
        assert "is a pickle file" in (why_nothing([name]) or "")
    assert why_nothing(["training_args.bin", "optimizer.pt", WEIGHTS]) is None
