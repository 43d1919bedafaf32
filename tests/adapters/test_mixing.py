import msgspec
import pytest

from peftserve.adapters.errors import InvalidAdapter
from peftserve.adapters.facts import AdapterFacts
from peftserve.adapters.mixing import Ingredient, check_mixture


def ingredient(name: str, *kinds: str, weight: float = 0.5, **fields: tuple[str, ...]) -> Ingredient:
    facts = AdapterFacts("X", 8, 100, dict.fromkeys(kinds, 1), 2, 4)
    return Ingredient(name, weight, msgspec.structs.replace(facts, **fields))


Q, DOWN = "model.layers.*.self_attn.q_proj", "model.layers.*.mlp.down_proj"
LORA = ingredient("lora@1", "low_rank", "bias")
IA3 = ingredient("ia3@1", inputs=(DOWN,), outputs=(Q,))
OFT, HRA = ingredient("oft@1", inputs=(Q, DOWN)), ingredient("hra@1", inputs=(DOWN,))
ROAD, VERA = ingredient("road@1", outputs=(Q, DOWN)), ingredient("vera@1", outputs=(Q,))
FULL = ingredient("full@1", "low_rank", outputs=("lm_head",))
DORA, OTHER_DORA = (ingredient(f"{name}@1", outputs=(Q,), exclusive=("DoRA",)) for name in ("dora", "other"))
PREFIX, PROMPT = ingredient("prefix@1", "kv_prefix", weight=1.0), ingredient("prompt@1", "kv_prefix", weight=1.0)
SIDE, OTHER_SIDE = ingredient("side@1", "side_attention"), ingredient("llama@1", "side_attention")
NET, OTHER_NET = ingredient("net@1", "bottleneck", weight=1.0), ingredient("other@1", "bottleneck", weight=1.0)
GATED, OTHER_GATED = ingredient("gated@1", "low_rank", "gate"), ingredient("alora@1", "low_rank", "gate")


@pytest.mark.parametrize(
    "mixture",
    [
        (LORA,),
        (LORA, ingredient("b@1", "low_rank", "sparse", "dense", "kronecker"), FULL),
        (OFT, HRA, LORA),
        (ROAD, VERA, LORA),
        (VERA, FULL, HRA),
        (IA3, IA3._replace(name="b@1")),
        (IA3, LORA),
        (DORA, LORA, VERA),
        (PREFIX,),
        (SIDE._replace(weight=1.0),),
        (GATED,),
        (NET,),
        (LORA, IA3, ingredient("beside@1", "parallel_bottleneck")),
        (IA3._replace(weight=-2.0),),
    ],
)
def test_what_can_be_mixed(mixture: tuple[Ingredient, ...]) -> None:
    check_mixture(mixture)


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        (
            (DORA, LORA, OTHER_DORA),
            "two DoRA adapters, dora@1 and other@1, cannot be mixed: each rescales what the other changed, so the "
            "result depends on their order",
        ),
        (
            tuple(ingredient(f"{name}@1", exclusive=("new method",)) for name in "ab"),
            "two new method adapters, a@1 and b@1, cannot be mixed: each is made for the base as it is, so the result "
            "depends on their order",
        ),
        ((PREFIX, LORA, PROMPT), "two KV prefixes, of prefix@1 and prompt@1, cannot be mixed: both want the first pos"),
        ((SIDE, OTHER_SIDE), "two side attentions, of side@1 and llama@1, cannot be mixed: each is a softmax of its"),
        ((GATED, OTHER_GATED), "two invocation gates, of gated@1 and alora@1, cannot be mixed: each waits for tokens"),
        ((LORA, PREFIX), "prefix@1 has a KV prefix and cannot be mixed: it is no sum of deltas, so weights have no me"),
        ((SIDE, LORA), "side@1 has a side attention and cannot be mixed: it is no sum of deltas"),
        ((LORA, GATED), "gated@1 has an invocation gate and cannot be mixed: it is no sum of deltas"),
        ((NET, OTHER_NET), "two bottlenecks, of net@1 and other@1, cannot be mixed: each reads what the other changes"),
        ((LORA, NET), "net@1 has a bottleneck and cannot be mixed: it is no sum of deltas"),
        ((NET._replace(weight=0.5),), "net@1 has a bottleneck, which no weight scales: its weight can only be 1"),
        ((PREFIX, GATED), "prefix@1 has a KV prefix and cannot be mixed"),
        (
            (LORA, OFT, ROAD),
            f"oft@1 and road@1 cannot be mixed: the one changes the input of {Q} and the other multiplies or replaces "
            "its output, and these do not commute",
        ),
        ((VERA, OFT), f"oft@1 and vera@1 cannot be mixed: the one changes the input of {Q} and the other multiplies"),
        ((IA3, ROAD), f"ia3@1 and road@1 cannot be mixed: the one changes the input of {DOWN} and the other"),
        ((PREFIX._replace(weight=0.5),), "prefix@1 has a KV prefix, which no weight scales: its weight can only be 1"),
        ((SIDE._replace(weight=2.0),), "side@1 has a side attention, which no weight scales: its weight can only be 1"),
    ],
)
def test_what_cannot_be_mixed_and_why(mixture: tuple[Ingredient, ...], message: str) -> None:
    with pytest.raises(InvalidAdapter) as error:
        check_mixture(mixture)
    assert error.value.message.startswith(message)
    assert error.value.param == "adapters"
