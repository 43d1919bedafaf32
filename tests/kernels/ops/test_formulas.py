"""Each formula against the matrix that it stands for, in float64."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from peftserve.kernels.ops.experts.reference import naive_expert_delta
from peftserve.kernels.ops.formulas import ACTIVATIONS, FORMULAS, Op
from peftserve.kernels.ops.site_plan import OpSegment

IN, OUT, TOKENS = 12, 8, 5


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def turned(y: torch.Tensor, group: int) -> torch.Tensor:
    """Compute rot(y), one feature at a time."""
    out = torch.empty_like(y)
    for start in range(0, y.shape[-1], group):
        half = group // 2
        for i in range(half):
            out[:, start + i] = -y[:, start + half + i]
            out[:, start + half + i] = y[:, start + i]
    return out


X, Y = draw(TOKENS, IN), draw(TOKENS, OUT)
BLOCKS = draw(3, 4, 4)
SPARSE_ROWS, SPARSE_COLUMNS = torch.tensor([0, 0, 3, 7], dtype=torch.int32), torch.tensor([1, 11, 1, 5]).int()
SPARSE = torch.zeros(OUT, IN, dtype=torch.float64)
SPARSE[SPARSE_ROWS.long(), SPARSE_COLUMNS.long()] = draw(4)


def starts_of(rows: torch.Tensor) -> torch.Tensor:
    """Return where the entries of each row begin, one row at a time."""
    return torch.tensor([int((rows < row).sum()) for row in range(OUT + 1)], dtype=torch.int32)


NET = {"down": draw(3, OUT), "down_bias": draw(3), "up": draw(OUT, 3), "up_bias": draw(OUT), "activation": "tanh"}


def network(v: torch.Tensor) -> torch.Tensor:
    """Compute the network of NET."""
    return torch.tanh(v @ draw(3, OUT).T + draw(3)) @ draw(OUT, 3).T + draw(OUT)


def routed(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
    """Route one token through the two best of its experts, at the temperature 0.5."""
    best = sorted((abs(float(p @ x)), e) for e, p in enumerate(prototypes))[-2:]
    weights = torch.tensor([math.exp(2 * (fit - best[-1][0])) for fit, _ in best], dtype=torch.float64)
    return sum(w * (b[e].T @ (a[e] @ x)) for w, (_, e) in zip(weights / weights.sum(), best, strict=True))


CASES: dict[str, tuple[dict[str, Any], torch.Tensor]] = {
    "input_scale": ({"d": draw(IN)}, X @ torch.diag(draw(IN))),
    "output_scale": ({"d": draw(OUT)}, Y @ torch.diag(draw(OUT))),
    "bias": ({"d": draw(OUT)}, draw(OUT).repeat(TOKENS, 1)),
    "input_rotation": ({"blocks": BLOCKS}, X @ torch.block_diag(*BLOCKS).T),
    "pair_rotation": (
        {"d": draw(OUT), "c": draw(1, OUT)[0], "group": 4},
        Y * draw(OUT) + turned(Y, 4) * draw(1, OUT)[0],
    ),
    "kronecker": ({"w1": draw(2, 3), "w2": draw(4, 4)}, X @ torch.kron(draw(2, 3), draw(4, 4)).T),
    "shared_low_rank": (
        {"a": draw(2, IN + 3), "b": draw(OUT + 5, 2), "d": draw(2), "scale": draw(OUT)},
        X @ (torch.diag(draw(OUT)) @ draw(OUT + 5, 2)[:OUT] @ torch.diag(draw(2)) @ draw(2, IN + 3)[:, :IN]).T,
    ),
    "routed_low_rank": (
        {"a": draw(3, 2, IN), "b": draw(3, 2, OUT), "prototypes": draw(3, IN), "top_k": 2, "temperature": 0.5},
        torch.stack([routed(x, draw(3, 2, IN), draw(3, 2, OUT), draw(3, IN)) for x in X]),
    ),
    "bottleneck": ({**NET, "source": ""}, network(Y)),
    "parallel_bottleneck": (
        {**NET, "down": draw(3, IN), "source": "norm"},
        torch.tanh(X @ draw(3, IN).T + draw(3)) @ draw(OUT, 3).T + draw(OUT),
    ),
    "dense": ({"w": draw(OUT, IN)}, X @ draw(OUT, IN).T),
    "low_rank": ({"a": draw(2, IN), "b": draw(OUT, 2)}, X @ (draw(OUT, 2) @ draw(2, IN)).T),
}

ELSEWHERE = {"sparse", "rows", "replacement", "expert_low_rank", "chain"}  # tested below
ELSEWHERE |= {"spectral", "circulant", "shared_bases"}  # in modules of their own


@pytest.mark.parametrize("kind", CASES)
def test_formula(kind: str) -> None:
    fields, wanted = CASES[kind]
    torch.testing.assert_close(Op(kind, fields)(X, Y), wanted)


def test_a_bottleneck_may_read_the_sum_with_another_module_s_input() -> None:
    r = draw(TOKENS, OUT + 1)[:, 1:]
    torch.testing.assert_close(Op("bottleneck", {**NET, "source": "norm"})(r, Y), network(Y + r))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("relu", lambda x: max(x, 0.0)),
        ("leaky_relu", lambda x: max(x, 0.01 * x)),
        ("gelu", lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2),
        ("gelu_tanh", lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2),
        ("quick_gelu", lambda x: x / (1 + math.exp(-1.702 * x))),
        ("silu", lambda x: x / (1 + math.exp(-x))),
        ("mish", lambda x: x * math.tanh(math.log1p(math.exp(x)))),
        ("tanh", math.tanh),
        ("sigmoid", lambda x: 1 / (1 + math.exp(-x))),
    ],
)
def test_activation(name: str, wanted: Callable[[float], float]) -> None:
    torch.testing.assert_close(ACTIVATIONS[name](Y), Y.clone().apply_(wanted))


def test_one_block_for_all() -> None:
    block = draw(1, 4, 4)
    got = Op("input_rotation", {"blocks": block})(X, None)
    torch.testing.assert_close(got, X @ torch.block_diag(*[block[0]] * 3).T)


@pytest.mark.parametrize("mkl", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_sparse_sums_in_fp32(mkl: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    if not mkl:
        monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    x, values = X.to(dtype), draw(4).to(dtype)
    op = Op("sparse", {"starts": starts_of(SPARSE_ROWS), "columns": SPARSE_COLUMNS, "values": values})
    matrix = torch.zeros_like(SPARSE).index_put((SPARSE_ROWS.long(), SPARSE_COLUMNS.long()), values.double())
    tolerance = 1e-5 if dtype is torch.float64 else 2e-2
    got = op(x, Y.to(dtype))
    assert got.dtype is dtype
    torch.testing.assert_close(got.double(), x.double() @ matrix.T, rtol=tolerance, atol=tolerance)


def test_sparse_entries_may_come_in_any_order_within_a_row_and_twice() -> None:
    rows, columns = torch.tensor([1, 1, 1, 6], dtype=torch.int32), torch.tensor([9, 2, 9, 0], dtype=torch.int32)
    matrix = torch.zeros_like(SPARSE).index_put((rows.long(), columns.long()), draw(4), accumulate=True)
    got = Op("sparse", {"starts": starts_of(rows), "columns": columns, "values": draw(4)})(X, Y)
    torch.testing.assert_close(got, X @ matrix.T, rtol=1e-5, atol=1e-5)


def test_rows_of_an_embedding_and_of_a_head() -> None:
    ids, values = torch.tensor([2, 5, 9], dtype=torch.int32), draw(3, OUT)
    op = Op("rows", {"ids": ids, "values": values})
    x = torch.tensor([5, 4, 9, 10, 2])
    got = op(x, Y)
    torch.testing.assert_close(got, torch.stack([values[1], Y[1], values[2], Y[3], values[0]]))
    head = Op("rows", {"ids": torch.tensor([0, 7], dtype=torch.int32), "values": draw(2, IN)})(X, Y)
    wanted = Y.clone()
    wanted[:, [0, 7]] = X @ draw(2, IN).T
    torch.testing.assert_close(head, wanted)


def test_low_rank_terms_of_experts() -> None:
    a, b = draw(3, 2, IN), draw(3, OUT, 2)
    op = Op("expert_low_rank", {"a": a, "b": b, "parameter": "down_proj"})
    experts = torch.tensor([[2], [0], [2], [1], [0]])
    wanted = naive_expert_delta([OpSegment(op, 1.0, 0, TOKENS)], "down_proj", X, experts)
    got = op(X.expand(3, -1, -1), Y)[experts[:, 0], torch.arange(TOKENS)]
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)


def test_every_kind_is_tested() -> None:
    assert FORMULAS.keys() == CASES.keys() | ELSEWHERE
