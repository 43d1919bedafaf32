"""Steps that overlap, over a model that only notes what it is asked."""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Any, cast

import pytest
import torch

from peftserve.server.engine.model.inputs import Feed
from peftserve.server.engine.model.runner import ModelRunner, StepLogits
from peftserve.server.engine.pipeline import Pipeline
from peftserve.server.engine.sampling import Append, PendingTokens, Sampler
from peftserve.server.engine.scheduling.batch import Batch
from peftserve.server.engine.scheduling.page_pool import PagePool
from peftserve.server.engine.scheduling.scheduler import Scheduler
from peftserve.server.engine.scheduling.sequence import UNKNOWN, Lease, Sequence
from peftserve.server.wire.messages import SamplingParams, SequenceOutput, WeightedAdapter

VOCAB = 8
EOS = 7
MOST_STEPS = 100


class CountingModel:
    """The token after t is t + 1, and after the last one 0; it fails in the steps of `fails`, counted from 0.

    lost: the device runs nothing any more. unsound: the token after which there are no numbers.
    """

    lost = False
    unsound = -1
    error: Exception = RuntimeError("out of luck")

    def __init__(self) -> None:
        self.fails: set[int] = set()
        self.steps: list[list[int]] = []

    def run(self, batch: Batch, feed: Feed | None, also: Callable[[Append], None]) -> StepLogits:
        also(torch.from_numpy)
        seen = []
        for chunk in batch.chunks:
            token = chunk.sequence.tokens[chunk.end - 1]
            if token == UNKNOWN:
                assert feed is not None
                token = int(feed.token_ids[feed.rows[chunk.sequence]])
            seen.append(token)
        self.steps.append(seen)
        if len(self.steps) - 1 in self.fails:
            raise self.error
        logits = torch.eye(VOCAB)[[(token + 1) % VOCAB for token in seen]]
        logits[[i for i, token in enumerate(seen) if token == self.unsound]] = torch.nan
        return StepLogits(logits, list(range(len(seen) + 1)))

    def check_device(self) -> None:
        if self.lost:
            raise RuntimeError("an illegal memory access was encountered")


class NoAdapters:
    def prepare(self, parts: Seq[WeightedAdapter]) -> bool:
        return True

    def reserve(self, parts: Seq[WeightedAdapter]) -> Lease | None:
        return Lease((), (), ())

    def is_ready(self, lease: Lease) -> bool:
        return True

    def ready_since(self, lease: Lease) -> float:
        return 0.0

    def release(self, lease: Lease) -> None: ...


class WatchedPool(PagePool):
    times_forgotten = 0

    def _publish(self, *_: object) -> None: ...

    def forget_all(self) -> None:
        super().forget_all()
        self.times_forgotten += 1


class Line:
    def __init__(self, overlapped: bool) -> None:
        self.model, self.pool = CountingModel(), WatchedPool(32)
        limits = {"page_size": 4, "max_batch_tokens": 32, "max_running": 8}
        self.scheduler = Scheduler(self.pool, NoAdapters(), **limits, prefix_caching=True)
        sampler = Sampler(VOCAB, torch.device("cpu"), 8)
        parts = cast(ModelRunner, self.model), sampler, self.scheduler
        self.pipeline = Pipeline(*parts, self.scheduler.remove, overlapped=overlapped)

    def add(self, name: str, first: int, max_tokens: int = 20, **sampling: Any) -> Sequence:
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, **sampling)
        sequence = Sequence(name, [first], params, (), salt="", seed=0, eos_token_ids=frozenset([EOS]))
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> dict[str, list[int] | str | None]:
        outputs = self.pipeline.advance(self.scheduler.schedule())
        return {output.request_id: output.error or output.token_ids for output in outputs}

    def run(self) -> dict[str, list[SequenceOutput]]:
        outputs: dict[str, list[SequenceOutput]] = {}
        for _ in range(MOST_STEPS):
            if not self.scheduler.has_work() and not self.pipeline:
                return outputs
            for output in self.pipeline.advance(self.scheduler.schedule()):
                outputs.setdefault(output.request_id, []).append(output)
        raise AssertionError("work is left for ever")


@pytest.fixture
def line() -> Callable[[bool], Line]:
    return Line


@pytest.mark.parametrize("overlapped", [False, True])
def test_every_sequence_gets_its_tokens_and_ends_once(line: Callable[[bool], Line], overlapped: bool) -> None:
    there = line(overlapped)
    for name, first, most in (("stops", 3, 20), ("long", 0, 6), ("short", 1, 1)):
        there.add(name, first, most)
    outputs = there.run()
    tokens = {name: [token for output in given for token in output.token_ids] for name, given in outputs.items()}
    assert tokens == {"stops": [4, 5, 6, 7], "long": [1, 2, 3, 4, 5, 6], "short": [2]}
    reasons = {name: [output.finish_reason for output in given] for name, given in outputs.items()}
    assert all(given[:-1] == [None] * (len(given) - 1) for given in reasons.values())
    assert {name: given[-1] for name, given in reasons.items()} == {
        "stops": "stop",
        "long": "length",
        "short": "length",
    }
    ran = [len(seen) for seen in there.model.steps]
    assert ran == ([3, 2, 2, 2, 2, 1] if overlapped else [3, 2, 2, 2, 1, 1]), "an end that nobody foresees costs a step"


def test_the_next_step_is_launched_before_the_tokens_are_known(line: Callable[[bool], Line]) -> None:
    there = line(True)
    sequence = there.add("one", 0)
    assert there.step() == {}
    assert sequence.tokens == [0, UNKNOWN]
    assert there.step() == {"one": [1]}
    assert sequence.tokens == [0, 1, UNKNOWN]
    assert there.model.steps == [[0], [1]]


def test_a_step_that_cannot_be_launched_takes_nothing_from_the_one_before(
    line: Callable[[bool], Line], caplog: pytest.LogCaptureFixture
) -> None:
    there = line(True)
    there.model.fails = {1}
    there.add("one", 0)
    assert there.step() == {}
    outputs = there.pipeline.advance(there.scheduler.schedule())
    assert [output.token_ids for output in outputs] == [[1], []]
    assert "could not run this request's step" in (outputs[1].error or "")
    assert outputs[1].error_kind == "StepFailed"
    assert there.pipeline.num_failed == 1
    there.scheduler.check_integrity()
    assert there.pool.times_forgotten == 1
    assert not there.pipeline
    there.add("two", 2)
    assert [output.token_ids for output in there.run()["two"]][:2] == [[3], [4]]


@pytest.mark.parametrize("overlapped", [False, True])
def test_a_sequence_without_numbers_ends_and_its_neighbours_go_on(
    line: Callable[[bool], Line], overlapped: bool, caplog: pytest.LogCaptureFixture
) -> None:
    there = line(overlapped)
    there.model.unsound = 4
    for name, first in (("sound", 0), ("breaks", 2), ("at once", 4), ("late", 5)):
        there.add(name, first, max_tokens=3)
    outputs = there.run()
    assert [output.error_kind for output in outputs["breaks"]] == [None, None, "InvalidLogits"]
    assert [output.error_kind for output in outputs["at once"]] == ["InvalidLogits"]
    assert [output.token_ids for output in outputs["sound"]] == [[1], [2], [3]]
    assert [output.token_ids for output in outputs["late"]] == [[6], [7]]
    assert there.pipeline.num_unsound == 2
    assert there.pipeline.num_failed == 0
    assert there.pool.num_used == 0
    there.scheduler.check_integrity()


@pytest.mark.parametrize("overlapped", [False, True])
@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_step_without_memory_is_told_as_such(
    line: Callable[[bool], Line], overlapped: bool, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    there = line(overlapped)
    there.model.fails, there.model.error = {0}, error
    there.add("one", 0)
    ((output,),) = there.run().values()
    assert output.error_kind == "OutOfMemory"
    there.add("two", 5)
    assert [output.token_ids for output in there.run()["two"]] == [[6], [7]]


def test_an_aborted_sequence_says_nothing_more(line: Callable[[bool], Line]) -> None:
    there = line(True)
    one, _ = there.add("one", 0), there.add("two", 0)
    there.step()
    there.scheduler.remove(one)
    assert there.step() == {"two": [1]}
    assert there.step() == {"two": [2]}


@pytest.mark.parametrize("overlapped", [False, True])
def test_an_engine_whose_device_is_lost_ends(line: Callable[[bool], Line], overlapped: bool) -> None:
    """Rather than to fail every step from then on."""
    there = line(overlapped)
    there.add("a", 0)
    there.model.fails, there.model.lost = {1}, True
    there.step()
    with pytest.raises(RuntimeError, match="illegal memory access"):
        there.step()


def test_the_next_tokens_are_chosen_before_the_host_looks_at_the_last(
    line: Callable[[bool], Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for those that penalties move by tokens that the host has yet to see."""
    happened: list[str] = []
    for owner, name in ((CountingModel, "run"), (Sampler, "start"), (PendingTokens, "result")):
        monkeypatch.setattr(owner, name, _noting(happened, name, getattr(owner, name)))
    there = line(True)
    there.add("plain", 0, 4)
    there.run()
    assert happened[:6] == ["run", "start", "run", "start", "result", "run"]
    happened.clear()
    there.add("penalized", 0, 4, frequency_penalty=0.5)
    there.run()
    assert happened[:6] == ["run", "start", "run", "result", "start", "run"]


def _noting(happened: list[str], name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*args: Any, **kwargs: Any) -> Any:
        happened.append(name)
        return call(*args, **kwargs)

    return noted
