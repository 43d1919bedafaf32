"""The rows of a step as parts, and the slots that each reads."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from peftserve.kernels.device.step_memory import StepMemory
from peftserve.server.engine.model.rows import RunningRows, StepRows
from peftserve.server.engine.model.state.parts import Part, PartsMemory, are_fresh
from peftserve.server.engine.scheduling.batch import Batch, Chunk
from peftserve.server.engine.scheduling.sequence import Sequence

MakeSequence = Callable[..., Sequence]
UNUSED = 9


@pytest.fixture
def rows(make_sequence: MakeSequence) -> Callable[..., StepRows]:
    def make(*spans: tuple[int, int, int]) -> StepRows:
        """Make a step. spans: the seat, first token and number of tokens of each."""
        chunks = []
        for seat, start, count in spans:
            sequence = make_sequence(list(range(1, start + count + 1)), list(range(20)))
            sequence.seat = seat
            chunks.append(Chunk(sequence, start, count, samples=True))
        return RunningRows().rows_of(Batch(chunks))

    return make


def written(step: StepRows, graph_rows: int | None = None) -> list[Part]:
    memory = StepMemory(torch.device("cpu"))
    parts = PartsMemory(memory, 64, 8, UNUSED)
    memory.begin()
    made = parts.write(step, graph_rows)
    memory.send()
    return made


def shown(part: Part) -> tuple[object, list[int], int, int, bool]:
    where = part.rows.tolist() if isinstance(part.rows, torch.Tensor) else part.rows
    return where, part.slots.tolist(), part.count, part.length, part.fresh


def test_decodes_are_one_part_and_each_span_is_one(rows: Callable[..., StepRows]) -> None:
    """Also a prompt of one token, which has no state yet, and a chunk of one token, which has."""
    step = rows((3, 5, 1), (1, 0, 4), (0, 7, 1), (2, 4, 2), (4, 0, 1))
    assert [shown(part) for part in written(step)] == [
        ([0, 5], [3, 0], 2, 1, False),
        (slice(1, 5), [1], 1, 4, True),
        (slice(6, 8), [2], 1, 2, False),
        (slice(8, 9), [4], 1, 1, True),
    ]
    assert are_fresh(step).tolist() == [False, True, False, False, True]


def test_a_step_of_one_kind_is_one_part_of_all_rows(rows: Callable[..., StepRows]) -> None:
    assert [shown(part) for part in written(rows((2, 3, 1), (0, 8, 1)))] == [(None, [2, 0], 2, 1, False)]
    assert [shown(part) for part in written(rows((5, 0, 7)))] == [(None, [5], 1, 7, True)]
    assert written(rows()) == []


def test_rows_of_a_graph_beyond_the_steps_have_a_slot_that_nobody_reads(rows: Callable[..., StepRows]) -> None:
    (part,) = written(rows((2, 3, 1), (0, 8, 1)), graph_rows=4)
    assert shown(part) == (None, [2, 0, UNUSED, UNUSED], 4, 1, False)


@pytest.mark.parametrize("begin", [None, 2])
def test_tokens_of_a_part_are_parts_in_order(begin: int | None) -> None:
    slots = torch.tensor([7])
    part = Part(None if begin is None else slice(begin, begin + 3), slots, 1, 3, False)
    whole = torch.arange(6.0)[None, :, None]
    tokens = part.by_token()
    first = begin or 0
    assert [token.take(whole).flatten().tolist() for token in tokens] == [[first], [first + 1.0], [first + 2.0]]
    assert all(token.slots is slots and not token.fresh for token in tokens)
    assert np.all([token.length == 1 for token in tokens])
