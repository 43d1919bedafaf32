import torch

from peftserve.adapters.bypass import Bypass, KVPrefix, SideAttention
from peftserve.adapters.peft.summary import facts_of
from peftserve.adapters.primitives import (
    Bias,
    Dense,
    InputRotation,
    InputScale,
    LowRank,
    OutputScale,
    PairRotation,
    Replacement,
    TokenRows,
)

V = torch.zeros(4)
LOW_RANK = LowRank(torch.zeros(2, 4), torch.zeros(4, 2))
KEYS = torch.zeros(5, 1, 4)


def test_primitives_are_counted_by_kind() -> None:
    sites = {"h.0.q": (LOW_RANK, OutputScale(V)), "h.1.q": (LOW_RANK, LOW_RANK, Bias(V)), "h.1.up": (Dense(V),)}
    facts = facts_of(Bypass("LORA", sites), 9)
    assert facts.primitives == {"low_rank": 3, "output_scale": 1, "bias": 1, "dense": 1}
    assert (facts.method, facts.rank, facts.sites, facts.consumed) == ("LORA", 4, 3, 9)
    assert facts.num_bytes == 3 * 64 + 3 * 16
    assert (facts.exclusive, facts.num_tasks, facts.virtual_tokens) == ((), 0, 0)


def test_what_is_beside_the_modules_is_counted_too() -> None:
    side = SideAttention(KEYS, KEYS, 1.0)
    bypass = Bypass(
        "X",
        {},
        prefix=KVPrefix(len(KEYS), {0: (KEYS, KEYS), 1: (KEYS, KEYS)}),
        side_attention={0: side, 1: side, 3: side},
        invocation=(7, 8),
        exclusive=("DoRA",),
        num_tasks=3,
    )
    facts = facts_of(bypass, 2)
    assert facts.primitives == {"kv_prefix": 1, "side_attention": 3, "gate": 1}
    assert (facts.virtual_tokens, facts.exclusive, facts.num_tasks, facts.rank) == (5, ("DoRA",), 3, 0)


def test_modules_where_an_order_matters_are_named_once_for_all_layers() -> None:
    rotation, pairs = InputRotation(torch.zeros(1, 2, 2)), PairRotation(V, V, 2)
    rows = TokenRows(torch.zeros(1, dtype=torch.int32), torch.zeros(1, 4))
    sites = {
        "h.0.mlp.experts.12.up": (InputScale(V),),
        "h.1.mlp.experts.3.up": (InputScale(V), LOW_RANK),
        "h.1.q": (rotation,),
        "h.0.k": (OutputScale(V), Bias(V)),
        "h.1.k": (pairs,),
        "h.10.v2.3": (pairs,),
        "head": (Replacement(bias=V),),
        "emb": (rows,),
        "h.0.o": (LOW_RANK,),
    }
    facts = facts_of(Bypass("X", sites), 1)
    assert facts.inputs == ("h.*.mlp.experts.*.up", "h.*.q")
    assert facts.outputs == ("h.*.k", "h.*.v2.*", "head", "emb")
