"""What the first rank tells: sequences as the others must have them, and loads that end when all have ended theirs."""

from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import pytest

from peftserve.server.engine.model.runner import ModelRunner
from peftserve.server.engine.parallel import messages
from peftserve.server.engine.parallel.follower import FollowedSequences
from peftserve.server.engine.parallel.leader import LeadingMirror, LeadingRunner, ToldSequences
from peftserve.server.engine.parallel.messages import Loaded, Step, decode_told, encode
from peftserve.server.engine.parallel.processes import RankLost, RankProcesses
from peftserve.server.engine.scheduling.batch import Batch, Chunk
from peftserve.server.engine.scheduling.sequence import Lease, Sequence
from peftserve.server.wire.messages import SamplingParams


def sequence(prompt: list[int], pages: list[int], lease: Lease | None = None, **sampling: Any) -> Sequence:
    made = Sequence("it", prompt, SamplingParams(**sampling), (), "", 0, frozenset())
    made.pages, made.lease = pages, lease or Lease((), (), ())
    made.begin(made.lease)
    return made


def told(step: Step) -> Step:
    """Return a step as it arrives."""
    arrived = decode_told(encode(step))
    assert isinstance(arrived, Step)
    return arrived


def assert_alike(own: Batch, other: Batch) -> None:
    """Compare all that a runner reads of a batch."""
    assert len(own.chunks) == len(other.chunks)
    for one, two in zip(own.chunks, other.chunks, strict=True):
        assert (one.start, one.num_tokens, one.samples, one.fill) == (two.start, two.num_tokens, two.samples, two.fill)
        assert one.num_logit_rows == two.num_logit_rows
        assert one.sequence.tokens[one.start : one.end] == two.sequence.tokens[two.start : two.end]
        assert one.sequence.pages == two.sequence.pages
        assert one.sequence.active_from == two.sequence.active_from
        assert one.sequence.slots == two.sequence.slots
    assert [own.chunks.index(c) for c in own.prefills] == [other.chunks.index(c) for c in other.prefills]


def test_a_sequence_is_followed_through_chunks_decodes_and_a_new_begin() -> None:
    ours, theirs = ToldSequences(), FollowedSequences()
    lease = Lease(("a",), (3,), (0.5,), prefix_length=2, invocation=(7,))
    one, two = sequence([5, 7, 9, 4], [8, 9], lease), sequence([1, 2, 3], [4], prompt_logprobs=0)

    def run(chunks: list[Chunk], prefills: list[Chunk] | None = None) -> Step:
        batch = Batch(chunks, prefills)
        step = told(ours.step(batch))
        assert_alike(batch, theirs.batch(step))
        return step

    run([Chunk(one, 2, 3, False, fill=0), Chunk(two, 0, 3, True)])
    two.tokens += [50]
    two.pages += [11]
    step = run([Chunk(one, 5, 1, True), Chunk(two, 3, 1, True)], [Chunk(one, 5, 1, True)])
    assert step.chunks[1].begin is None
    assert step.chunks[1].pages == [11]
    two.tokens += [51]
    one.tokens += [60]
    run([Chunk(one, 6, 1, True), Chunk(two, 4, 1, True)], [])
    one.pages[:] = [2]  # preempted, and begun anew
    run([Chunk(one, 2, 5, True, fill=0), Chunk(two, 5, 1, True)][:1])
    two.is_over = True
    assert run([Chunk(one, 6, 1, True)], []).ended == [1]


class FakeRanks:
    """The processes of two other ranks, which answer when the test says so."""

    count = 2

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.waiting: list[Loaded] = []
        self.lost = False

    def tell(self, message: Any) -> None:
        self.told.append(message)

    def answers(self) -> list[Loaded]:
        answers, self.waiting = self.waiting, []
        return answers

    def check(self) -> None:
        if self.lost:
            self.fail()

    def fail(self) -> None:
        raise RankLost("rank 1 was killed")


class FailingRunner:
    def run(self, *_: object) -> None:
        raise ValueError("no memory")


def test_a_load_is_done_when_every_rank_has_done_it() -> None:
    ranks = FakeRanks()
    mirror, own = LeadingMirror(cast(RankProcesses, ranks)), Future[Any]()
    load = mirror.load("digest:1", lambda digest: Path("/store") / digest, 4, 64, own)
    assert ranks.told == [messages.Load("digest:1", "/store/digest", 4, 64)]
    own.set_result("prepared")
    assert not load.done()
    ranks.waiting = [Loaded(4, "digest:1")]
    assert not load.done()
    ranks.waiting = [Loaded(4, "digest:1")]
    assert load.done()
    assert cast(object, load.result()) == "prepared"


def test_a_load_that_fails_on_another_rank_fails() -> None:
    ranks = FakeRanks()
    mirror, own = LeadingMirror(cast(RankProcesses, ranks)), Future[Any]()
    load = mirror.load("digest", Path, 4, 64, own)
    own.set_result("prepared")
    ranks.waiting = [Loaded(4, "digest", "MemoryError: no room"), Loaded(4, "digest")]
    assert load.done()
    with pytest.raises(RankLost, match="MemoryError: no room"):
        load.result()


def test_slots_are_followed() -> None:
    ranks = FakeRanks()
    mirror = LeadingMirror(cast(RankProcesses, ranks))
    mirror.attach(3)
    mirror.detach(3)
    mirror.forget("digest")
    assert ranks.told == [messages.Attach(3), messages.Detach(3), messages.Forget("digest")]


def test_a_step_that_fails_here_is_the_end() -> None:
    ranks = FakeRanks()
    runner = LeadingRunner(cast(ModelRunner, FailingRunner()), cast(RankProcesses, ranks))
    with pytest.raises(RankLost):
        runner.run(Batch())
    assert len(ranks.told) == 1


def test_no_step_begins_without_a_rank() -> None:
    ranks = FakeRanks()
    ranks.lost = True
    runner = LeadingRunner(cast(ModelRunner, FailingRunner()), cast(RankProcesses, ranks))
    with pytest.raises(RankLost):
        runner.run(Batch())
    assert not ranks.told
