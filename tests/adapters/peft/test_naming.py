"""Which names of a decoder are told from the tensors' names, and what becomes of the others."""

import dataclasses
from typing import Any

import pytest

from peftserve.adapters.errors import InvalidAdapter
from peftserve.adapters.peft.naming import Naming, naming_of
from peftserve.adapters.sites import Site, SiteKind, SiteTable


def test_every_field_of_names_is_renamed() -> None:
    """Of a table all of whose fields name what is below the decoder; unread modules never are."""
    name = "model.layers.0.q"
    values: dict[str, Any] = {"sites": {name: Site(name, SiteKind.LINEAR, 4, 4)}}
    for field in dataclasses.fields(SiteTable):
        values.setdefault(field.name, frozenset({name}) if "frozenset" in str(field.type) else name)
    renamed = Naming({"model": "language_model.model"}).renamed(SiteTable(**values))
    for key in values.keys() - {"unread"}:
        found = getattr(renamed, key)
        assert ({found} if isinstance(found, str) else {*found}) == {f"language_model.{name}"}, key


def table(stem: str, head: str = "lm_head") -> SiteTable:
    names = [f"{stem}.layers.{i}.self_attn.{part}" for i in range(2) for part in ("q_proj", "v_proj")]
    sites = [Site(name, SiteKind.LINEAR, 4, 4) for name in [f"{stem}.embed_tokens", *names, head]]
    others = frozenset({f"{stem}.layers.0.self_attn", f"{stem}.layers", stem})
    return SiteTable({site.name: site for site in sites}, head=head, other_modules=others)


STEMS = ["model", "model.language_model", "language_model.model", "model.text_model", "thinker.model"]


@pytest.mark.parametrize("theirs", STEMS)
@pytest.mark.parametrize("own", STEMS)
def test_each_name_of_a_decoder_for_each_other(own: str, theirs: str) -> None:
    naming = naming_of(
        [f"{theirs}.layers.1.self_attn.q_proj.lora_A.weight", "vision_tower.layers.0.q_proj"], table(own)
    )
    if own == theirs:
        assert naming is None
        return
    assert naming is not None
    renamed = naming.renamed(table(own))
    assert [*renamed.sites] == [*table(theirs).sites]
    assert all(site.name == name for name, site in renamed.sites.items())
    assert renamed.other_modules == table(theirs).other_modules
    assert renamed.head == "lm_head"


def test_the_head_has_names_of_its_own() -> None:
    naming = naming_of(["language_model.lm_head.lora_A.weight"], table("model.language_model"))
    assert naming is not None
    assert naming.renamed(table("model.language_model")).head == "language_model.lm_head"
    assert naming_of(["lm_head.lora_A.weight"], table("model.language_model")) is None


def test_what_is_unknown_or_of_two_forms() -> None:
    assert naming_of(["transformer.layers.0.self_attn.q_proj.lora_A.weight"], table("model")) is None
    assert naming_of(["language_model.model.blocks.0.q_proj.lora_A.weight"], table("model")) is None
    with pytest.raises(InvalidAdapter, match=r"two ways: model.language_model and language_model.model"):
        naming_of(
            [f"{stem}.layers.0.self_attn.q_proj.x" for stem in ("model.language_model", "language_model.model")],
            table("model"),
        )
