"""The names that a configuration targets, against PEFT's own functions over the same names."""

from dataclasses import replace
from typing import Any

import peft
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from peftserve.adapters.errors import AdapterError, InvalidAdapter, UnsupportedAdapter
from peftserve.adapters.peft.config import Targets, parse_config
from peftserve.adapters.peft.patterns import Deadline
from peftserve.adapters.peft.targets import Matcher, targeted_sites, values_at
from peftserve.adapters.sites import Site, SiteKind, SiteTable

LINEARS = [
    f"model.layers.{i}.{name}"
    for i in (0, 1, 11)
    for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "mlp.experts.1.up_proj")
]
SITES = {
    "model.embed_tokens": Site("model.embed_tokens", SiteKind.EMBEDDING, 10, 4),
    **{name: Site(name, SiteKind.LINEAR, 4, 4) for name in LINEARS},
    "lm_head": Site("lm_head", SiteKind.HEAD, 4, 10),
}
OTHERS = frozenset({"model", "model.layers.0", "model.layers.0.mlp", "model.norm"})
TABLE = SiteTable(SITES, head="lm_head", other_modules=OTHERS)
NAMES = [*SITES, *OTHERS]

PARTS = [
    "q_proj",
    "k_proj",
    "up_proj",
    "mlp.up_proj",
    "0.mlp.up_proj",
    "proj",
    "norm",
    "lm_head",
    "embed_tokens",
    "model",
]
LISTS = st.lists(st.sampled_from([*PARTS, *LINEARS]), min_size=1, max_size=3)
EXPRESSIONS = st.sampled_from(
    [".*q_proj", r".*\.\d+\.mlp.*", "lm_head|.*embed.*", "q_proj", r"model\.layers\.1.*", ".*"]
)
CONFIGS = st.fixed_dictionaries(
    {"target_modules": LISTS},
    optional={
        "exclude_modules": LISTS | EXPRESSIONS,
        "layers_to_transform": st.sampled_from([0, 1, 11, [], [0, 1], [2]]),
        "layers_pattern": st.sampled_from([None, "layers", ["layers"], "experts", ["h", "layers"], "lay.*"]),
    },
) | st.fixed_dictionaries({"target_modules": EXPRESSIONS}, optional={"exclude_modules": LISTS | EXPRESSIONS})


def targets(config: dict[str, Any]) -> Targets:
    return parse_config({"peft_type": "LORA", **config}).targets


@settings(max_examples=300, deadline=None)
@given(CONFIGS)
def test_as_peft_targets(config: dict[str, Any]) -> None:
    if config.get("layers_pattern") and "layers_to_transform" not in config:
        del config["layers_pattern"]
    theirs = peft.LoraConfig(**config)
    wanted = [name for name in NAMES if check_target_module_exists(theirs, name)]
    matcher = Matcher(targets(config), Deadline())
    assert [name for name in NAMES if matcher(name)] == wanted
    try:
        found = targeted_sites(targets(config), TABLE, Deadline())
    except AdapterError:
        assert not wanted or OTHERS.intersection(wanted)
    else:
        assert found == wanted


KEYS = st.sampled_from(
    ["q_proj", "self_attn.q_proj", r"layers\.1\..*", "^model.*up_proj", "model", "proj", r"[qk]_proj", "x"]
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(KEYS, st.integers(1, 9)))
def test_as_peft_looks_patterns_up(patterns: dict[str, int]) -> None:
    wanted = {name: patterns.get(get_pattern_key(patterns.keys(), name), 0) for name in NAMES}
    assert values_at(patterns, 0, NAMES, "rank_pattern", Deadline()) == wanted


def test_all_linear_leaves_out_the_head_and_embeddings() -> None:
    assert targeted_sites(Targets("all-linear"), TABLE, Deadline()) == LINEARS
    some = targeted_sites(Targets("All-Linear", exclude=("up_proj",)), TABLE, Deadline())
    assert some == [name for name in LINEARS if "up_proj" not in name]


def test_a_head_that_is_a_plain_linear_is_left_out_too() -> None:
    table = SiteTable({**SITES, "lm_head": Site("lm_head", SiteKind.LINEAR, 4, 10)}, head="lm_head")
    assert targeted_sites(Targets("all-linear"), table, Deadline()) == LINEARS


def test_messages_are_bounded() -> None:
    with pytest.raises(InvalidAdapter, match=r"nothing0, .*, nothing4, \.\.\. \(100 in all\) matches no module"):
        targeted_sites(Targets(tuple(f"nothing{i}" for i in range(100))), TABLE, Deadline())
    with pytest.raises(InvalidAdapter, match="matches no module") as error:
        targeted_sites(Targets("x" * 9999), TABLE, Deadline())
    assert len(error.value.message) < 400


def test_tying_adds_the_pair_only_where_peft_knows_the_names() -> None:
    tied = SiteTable(SITES, head="lm_head", tied_head="model.embed_tokens")
    both = ["model.embed_tokens", "lm_head"]
    for modules in (("embed_tokens",), ("lm_head",), "lm_head|nothing", "(.*[.])?embed_tokens"):
        assert targeted_sites(Targets(modules), tied, Deadline(), tie=True) == both
    assert targeted_sites(Targets(("lm_head",)), tied, Deadline()) == ["lm_head"]
    assert targeted_sites(Targets(("lm_head",)), TABLE, Deadline(), tie=True) == ["lm_head"]
    assert targeted_sites(Targets("all-linear"), tied, Deadline(), tie=True) == LINEARS


def test_a_linear_that_is_no_site_is_refused_for_what_it_is() -> None:
    table = replace(
        TABLE,
        other_modules=OTHERS | {"model.pooler"},
        irregular=frozenset({"model.pooler"}),
        matrices=frozenset({"model.pooler"}),
    )
    with pytest.raises(UnsupportedAdapter, match=r"takes in model\.pooler, which this base does not run on"):
        targeted_sites(targets({"target_modules": ["pooler", "q_proj"]}), table, Deadline())
    with pytest.raises(InvalidAdapter, match=r"neither linear layers nor embeddings: model\.norm"):
        targeted_sites(targets({"target_modules": ["norm", "q_proj"]}), table, Deadline())


def test_modules_that_no_text_passes_are_left_out_and_not_enough() -> None:
    table = replace(TABLE, unread=frozenset({"model.eyes", "model.eyes.layers.0.q_proj", "model.eyes.only"}))
    named = targeted_sites(Targets(("q_proj", "only")), table, Deadline())
    assert named == [name for name in LINEARS if name.endswith("q_proj")]
    with pytest.raises(InvalidAdapter, match=r"takes in model\.eyes\.only alone, which no text passes"):
        targeted_sites(Targets(("only",)), table, Deadline())
