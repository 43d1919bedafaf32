"""The scheduler without a model: a simulated one writes what each position depends on, and reads it back."""

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftserve.server.engine.scheduling.batch import Batch
from peftserve.server.engine.scheduling.page_pool import PagePool
from peftserve.server.engine.scheduling.running import PROMPT_LOGPROBS_CHUNK
from peftserve.server.engine.scheduling.scheduler import PREFETCH, STARVATION_STEPS, Scheduler
from peftserve.server.engine.scheduling.sequence import UNKNOWN, Lease
from peftserve.server.engine.scheduling.sequence import Sequence as EngineSequence
from peftserve.server.engine.scheduling.shares import LEAST_TURN, Shares
from peftserve.server.engine.scheduling.snapshots import Snapshots
from peftserve.server.wire.messages import WeightedAdapter

MakeSequence = Callable[..., EngineSequence]
MOST_STEPS = 5000


@dataclass
class FakeResidency:
    """Slots by count. An adapter is at hand `fetch_steps` questions after the first, and ready `copy_steps` after.

    prepared: digests ever asked for, in order.
    """

    slots: int = 8
    fetch_steps: int = 0
    copy_steps: int = 0
    holders: Counter[str] = field(default_factory=Counter)
    resident: dict[str, int] = field(default_factory=dict)
    prepared: dict[str, int] = field(default_factory=dict)

    def prepare(self, parts: Sequence[WeightedAdapter]) -> bool:
        for part in parts:
            self.prepared[part.digest] = self.prepared.get(part.digest, -1) + 1
        return all(self.prepared[part.digest] >= self.fetch_steps for part in parts)

    def reserve(self, parts: Sequence[WeightedAdapter]) -> Lease | None:
        digests = [part.digest for part in parts]
        missing = [digest for digest in digests if digest not in self.resident]
        idle = [digest for digest in self.resident if not self.holders[digest] and digest not in digests]
        if len(missing) > self.slots - len(self.resident) + len(idle):
            return None
        for digest in missing:
            if len(self.resident) == self.slots:
                del self.resident[idle.pop()]
            self.resident[digest] = 0
        self.holders.update(digests)
        slots = tuple(sorted(self.prepared).index(digest) for digest in digests)
        return Lease(tuple(digests), slots, tuple(part.weight for part in parts))

    def is_ready(self, lease: Lease) -> bool:
        for digest in lease.digests:
            assert self.holders[digest] > 0, "a lease's adapter is held by nobody"
            self.resident[digest] += 1
        return all(self.resident[digest] > self.copy_steps for digest in lease.digests)

    def ready_since(self, lease: Lease) -> float:
        return 0.0

    def release(self, lease: Lease) -> None:
        self.holders.subtract(lease.digests)
        assert all(count >= 0 for count in self.holders.values()), "released more often than reserved"


@dataclass
class Simulation:
    """Runs the batches of a scheduler on a cache that holds, for each position, the prefix that it belongs to.

    What a chunk of one token writes, the others of its step may not find there yet.
    overlapped: a step's tokens are known only when the next one is on its way. states: by slot, the prefix that a
    recurrent model's state is behind.
    """

    scheduler: Scheduler
    page_size: int
    cache: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    states: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    done: dict[str, list[int]] = field(default_factory=dict)
    computed: int = 0
    overlapped: bool = False
    on_its_way: Batch = field(default_factory=Batch)

    def step(self) -> Batch:
        batch = self.scheduler.schedule()
        self.scheduler.check_integrity()
        single = self._write(batch)
        self._run_states(batch)
        for chunk in batch.chunks:
            self._check_context(chunk.sequence, chunk.end)
            assert not single.intersection(self._positions(chunk.sequence, chunk.start)), "read while it is written"
            self.computed += chunk.num_tokens
        if self.overlapped:
            self._collect(self.on_its_way)
        self.scheduler.launched(batch)
        self.on_its_way = batch
        if not self.overlapped:
            self._collect(batch)
        self.scheduler.check_integrity()
        return batch

    def _collect(self, batch: Batch) -> None:
        for chunk in batch.chunks:
            if chunk.samples and not chunk.sequence.is_over:
                self._advance(chunk.sequence)

    def run(self, sequences: Sequence[EngineSequence] = ()) -> None:
        for sequence in sequences:
            self.scheduler.add(sequence)
        for _ in range(MOST_STEPS):
            if not self.scheduler.has_work():
                return
            self.step()
        raise AssertionError(f"{self.scheduler.num_waiting} sequences wait for ever")

    def _positions(self, sequence: EngineSequence, end: int) -> list[int]:
        return [sequence.pages[i // self.page_size] * self.page_size + i % self.page_size for i in range(end)]

    def _write(self, batch: Batch) -> set[int]:
        """The positions of chunks of one token."""
        written, single = set[int](), set[int]()
        for chunk in batch.chunks:
            assert chunk.start == chunk.sequence.num_computed
            assert chunk.num_tokens > 0
            positions = self._positions(chunk.sequence, chunk.end)
            for i in range(chunk.start, chunk.end):
                assert positions[i] not in written, "two sequences write one position"
                written.add(positions[i])
                self.cache[positions[i]] = depends_on(chunk.sequence, i)
            if chunk.num_tokens == 1:
                single.add(positions[-1])
        return single

    def _run_states(self, batch: Batch) -> None:
        """Go on from the state of each seat, as a model that keeps one does."""
        for chunk in batch.chunks:
            if chunk.restore is not None:
                self.states[chunk.sequence.seat] = self.states[chunk.restore]
        for chunk in batch.chunks:
            if self.scheduler.keeps_state and chunk.start > 0:
                assert self.states[chunk.sequence.seat] == depends_on(chunk.sequence, chunk.start - 1)
            self.states[chunk.sequence.seat] = depends_on(chunk.sequence, chunk.end - 1)
        for chunk in batch.chunks:
            if chunk.save is not None:
                self.states[chunk.save.slot] = self.states[chunk.sequence.seat]

    def _check_context(self, sequence: EngineSequence, end: int) -> None:
        for i, position in enumerate(self._positions(sequence, end)):
            assert self.cache[position] == depends_on(sequence, i), f"token {i} of {sequence.request_id}"

    def _advance(self, sequence: EngineSequence) -> None:
        sequence.append(known(sequence)[-1])
        if sequence.is_full or sequence.output[-1] in sequence.end_token_ids:
            self.scheduler.remove(sequence)
            self.done[sequence.request_id] = sequence.output
            assert not sequence.pages
            assert sequence.lease is None


def depends_on(sequence: EngineSequence, i: int) -> tuple[Any, ...]:
    return (sequence.salt, sequence.adapters, *known(sequence)[: i + 1])


def known(sequence: EngineSequence) -> list[int]:
    """The tokens as the device knows them."""
    tokens = sequence.tokens
    return tokens if tokens[-1] != UNKNOWN else [*tokens[:-1], model(sequence, tokens[:-1])]


def model(sequence: EngineSequence, tokens: list[int]) -> int:
    """The next token: 0 or 1, by all that it depends on."""
    return hashlib.sha256(repr((sequence.salt, sequence.adapters, tokens)).encode()).digest()[0] % 2


def answer(sequence: EngineSequence) -> list[int]:
    tokens = list(sequence.prompt)
    while len(tokens) < sequence.num_prompt + sequence.sampling.max_tokens:
        tokens.append(model(sequence, tokens))
        if tokens[-1] in sequence.end_token_ids:
            break
    return tokens[sequence.num_prompt :]


def simulation(
    num_pages: int = 64,
    page_size: int = 4,
    residency: FakeResidency | None = None,
    budget: int = 64,
    max_running: int = 8,
    prefix_caching: bool = True,
    overlapped: bool = False,
    snapshots: int | None = None,
) -> Simulation:
    """snapshots: of a model that keeps state; None for one that keeps none."""
    scheduler = Scheduler(
        PagePool(num_pages),
        residency or FakeResidency(),
        page_size=page_size,
        max_batch_tokens=budget,
        max_running=max_running,
        prefix_caching=prefix_caching,
        snapshots=Snapshots(range(max_running, max_running + (snapshots or 0))),
        keeps_state=snapshots is not None,
    )
    return Simulation(scheduler, page_size, overlapped=overlapped)


@st.composite
def workloads(draw: st.DrawFn) -> list[tuple[int, dict[str, Any]]]:
    """(step of arrival, what `make_sequence` takes); few different tokens, so that prefixes coincide."""
    requests = draw(
        st.lists(
            st.fixed_dictionaries(
                {
                    "prompt": st.lists(st.integers(0, 1), min_size=1, max_size=14),
                    "adapters": st.sampled_from([(), ("a",), ("b",), ("a", "b"), ("c", "a"), ("d",)]),
                    "salt": st.sampled_from(["", "tenant"]),
                    "tenant": st.sampled_from(["", "", "x", "y"]),
                    "max_tokens": st.integers(1, 6) | st.integers(34, 50),
                    "prompt_logprobs": st.sampled_from([None, None, 0]),
                    "stop_token_ids": st.sampled_from([[], [1]]),
                }
            ),
            min_size=1,
            max_size=10,
        )
    )
    return [(draw(st.integers(0, 8)), request) for request in requests]


@settings(max_examples=120, deadline=None)
@given(
    requests=workloads(),
    page_size=st.integers(1, 4),
    spare_pages=st.integers(0, 12),
    budget=st.integers(1, 20),
    max_running=st.integers(1, 6),
    prefix_caching=st.booleans(),
    overlapped=st.booleans(),
    snapshots=st.sampled_from([None, None, 0, 1, 3]),
    residency=st.builds(
        FakeResidency, slots=st.integers(2, 4), fetch_steps=st.integers(0, 3), copy_steps=st.integers(0, 3)
    ),
)
def test_every_sequence_gets_its_answer_within_the_limits(
    make_sequence: MakeSequence,
    requests: list[tuple[int, dict[str, Any]]],
    page_size: int,
    spare_pages: int,
    budget: int,
    max_running: int,
    prefix_caching: bool,
    overlapped: bool,
    snapshots: int | None,
    residency: FakeResidency,
) -> None:
    needs = [-(-(len(r["prompt"]) + r["max_tokens"]) // page_size) for _, r in requests]
    num_pages = max(needs) + spare_pages
    run = simulation(num_pages, page_size, residency, budget, max_running, prefix_caching, overlapped, snapshots)
    arriving = deque((step, make_sequence(**r)) for step, r in sorted(requests, key=lambda pair: pair[0]))
    sequences = [sequence for _, sequence in arriving]
    for step in range(MOST_STEPS):
        while arriving and arriving[0][0] <= step:
            run.scheduler.add(arriving.popleft()[1])
        check_step(run, budget, max_running)
        if not arriving and not run.scheduler.has_work():
            break
    assert run.done == {sequence.request_id: answer(sequence) for sequence in sequences}
    assert run.scheduler.pool.num_used == 0
    assert not any(residency.holders.values())
    if sum(needs) <= num_pages and len({sequence.tenant for sequence in sequences}) == 1:
        assert run.scheduler.num_preemptions == 0
    check_prefix_counts(run, sequences, prefix_caching)


def check_step(run: Simulation, budget: int, max_running: int) -> None:
    """No limit is exceeded, and whatever runs advances."""
    advancing = {s.request_id for s in run.scheduler.running if s.num_remaining and not s.awaits_its_end}
    preemptions = run.scheduler.num_preemptions
    batch = run.step()
    costs = [chunk.sequence.cost for chunk in batch.chunks]
    taken = sum(chunk.num_tokens * cost for chunk, cost in zip(batch.chunks, costs, strict=True))
    assert batch.num_tokens <= budget
    assert taken < budget + max(costs, default=1), "adapters' work has no bound"
    assert len(batch.chunks) <= max_running
    assert len(run.scheduler.running) <= max_running
    if preemptions == run.scheduler.num_preemptions:
        assert advancing <= {chunk.sequence.request_id for chunk in batch.chunks}


def check_prefix_counts(run: Simulation, sequences: list[EngineSequence], prefix_caching: bool) -> None:
    for sequence in sequences:
        assert sequence.num_cached is not None
        assert sequence.num_cached < sequence.num_prompt, "the last token's logits come from nowhere"
        assert sequence.num_cached % run.page_size == 0
        assert sequence.num_cached == 0 or (prefix_caching and not sequence.wants_prompt_logprobs)
    assert run.scheduler.prefix_hit_tokens == sum(sequence.num_cached or 0 for sequence in sequences)
    assert run.scheduler.prefix_query_tokens == sum(sequence.num_prompt for sequence in sequences)


def test_a_repeated_prompt_is_found_but_for_its_last_token(make_sequence: MakeSequence) -> None:
    prompts = [list(range(8)), list(range(8)), list(range(9)), list(range(7))]
    run = simulation(page_size=4)
    cached = []
    for prompt in prompts:
        sequence = make_sequence(prompt=prompt, max_tokens=1)
        run.run([sequence])
        cached.append(sequence.num_cached)
    assert cached == [0, 4, 8, 4]


@pytest.mark.parametrize("change", [{"salt": "tenant"}, {"adapters": ["a"]}, {"prompt_logprobs": 0}])
def test_prefixes_of_other_tenants_and_adapters_are_not_found(
    make_sequence: MakeSequence, change: dict[str, Any]
) -> None:
    run = simulation()
    run.run([make_sequence(prompt=range(9), max_tokens=1)])
    other = make_sequence(prompt=range(9), max_tokens=1, **change)
    run.run([other])
    assert other.num_cached == 0


def test_sequences_of_one_step_share_a_prefix_that_is_computed_in_it(make_sequence: MakeSequence) -> None:
    run = simulation()
    run.run([make_sequence(prompt=range(9), max_tokens=1) for _ in range(3)])
    assert run.computed == 9 + 1 + 1


def test_a_page_that_one_token_fills_is_found_from_the_next_step_on(make_sequence: MakeSequence) -> None:
    """Attention writes such a token in the launch in which others read."""
    run = simulation(budget=3)
    first = make_sequence(prompt=range(4), max_tokens=1)
    run.scheduler.add(first)
    assert [chunk.num_tokens for chunk in run.step().chunks] == [3]
    beside, later = (make_sequence(prompt=range(5), max_tokens=1) for _ in range(2))
    run.scheduler.add(beside)
    assert [(chunk.start, chunk.num_tokens) for chunk in run.step().chunks] == [(3, 1), (0, 2)]
    run.scheduler.add(later)
    run.run()
    assert (beside.num_cached, later.num_cached) == (0, 4), "also after the one that filled it has ended"


def test_a_prefix_survives_until_its_pages_are_needed(make_sequence: MakeSequence) -> None:
    run = simulation(num_pages=4)
    for prompt in ([0] * 9, [1] * 9, [0] * 9):
        sequence = make_sequence(prompt=prompt, max_tokens=1)
        run.run([sequence])
    assert sequence.num_cached == 4


def test_decodes_run_beside_a_long_prefill(make_sequence: MakeSequence) -> None:
    run = simulation(num_pages=600, budget=8)
    short = make_sequence(prompt=[1], max_tokens=50)
    run.scheduler.add(short)
    run.step()
    run.scheduler.add(make_sequence(prompt=[2] * 1000, max_tokens=1))
    for _ in range(49):
        batch = run.step()
        assert [chunk.num_tokens for chunk in batch.chunks] == [1, 7]
    assert short.request_id in run.done


def test_a_token_takes_as_much_of_the_budget_as_adapters_work_on_it(make_sequence: MakeSequence) -> None:
    run = simulation(budget=12)
    for adapters in (["a", "b", "c"], ["a"], []):
        run.scheduler.add(make_sequence(prompt=[1] * 40, adapters=adapters, max_tokens=1))
    assert [(len(s.sequence.adapters), s.num_tokens) for s in run.step().chunks] == [(3, 4)]
    run.run()
    decoding = make_sequence(prompt=[1], adapters=["a", "b", "c"], max_tokens=30)
    run.scheduler.add(decoding)
    run.step()
    run.scheduler.add(make_sequence(prompt=[1] * 40, adapters=["a", "b"], salt="new", max_tokens=1))
    assert {len(s.sequence.adapters): s.num_tokens for s in run.step().chunks} == {3: 1, 2: (12 - 3) // 2}


def test_a_mixture_of_more_adapters_than_the_budget_has_tokens_for_still_runs(make_sequence: MakeSequence) -> None:
    run = simulation(budget=2)
    mixture = make_sequence(prompt=[1] * 5, adapters=["a", "b", "c", "d"], max_tokens=3)
    long = make_sequence(prompt=[2] * 5, max_tokens=3)
    run.run([mixture, long])
    assert run.done == {s.request_id: answer(s) for s in (mixture, long)}


def test_a_prefill_goes_on_beside_decodes_that_take_the_whole_budget(make_sequence: MakeSequence) -> None:
    """One that was cut for its logprobs leaves room for others, which then take all of it."""
    run = simulation(num_pages=400, budget=PROMPT_LOGPROBS_CHUNK + 1)
    cut = make_sequence(prompt=[1] * 300, max_tokens=1, prompt_logprobs=0)
    others = make_sequence(prompt=[2], adapters=[str(i) for i in range(8)], max_tokens=400)
    run.scheduler.add(cut)
    run.scheduler.add(others)
    run.step()
    assert len(run.scheduler.running) == 2
    run.scheduler._running.max_batch_tokens = 4  # as if many such decoded
    before = cut.num_computed
    run.step()
    assert cut.num_computed == before + 1


def test_decodes_keep_their_rows_while_the_same_go_on(make_sequence: MakeSequence) -> None:
    run = simulation(num_pages=100)
    sequences = [make_sequence(prompt=[i], adapters=[a], max_tokens=20 + i) for i, a in enumerate("abab")]
    for sequence in sequences:
        run.scheduler.add(sequence)
    run.step()
    first, second = run.step(), run.step()
    assert first.only_decodes
    assert first.lineup is second.lineup
    assert (second.ends - first.ends).tolist() == [1] * 4
    assert [chunk.end for chunk in first.chunks] == first.ends.tolist()
    assert first.lineup.seats.tolist() == [s.seat for s in first.lineup.sequences]
    run.scheduler.remove(sequences[2])
    third = run.step()
    assert third.lineup is not second.lineup
    assert set(third.lineup.sequences) == set(sequences) - {sequences[2]}


def test_no_more_run_than_the_budget_has_tokens_for(make_sequence: MakeSequence) -> None:
    """So each that runs advances in every step."""
    run = simulation(budget=3)
    for _ in range(7):
        run.scheduler.add(make_sequence(prompt=[1, 2], max_tokens=30))
    while run.scheduler.has_work():
        running = list(run.scheduler.running)
        assert len(running) <= 3
        assert {chunk.sequence for chunk in run.step().chunks} >= set(running)


def test_the_newest_is_preempted_when_pages_run_out(make_sequence: MakeSequence) -> None:
    run = simulation(num_pages=4, prefix_caching=False)
    sequences = [make_sequence(prompt=[i] * 7, max_tokens=6) for i in range(2)]
    for sequence in sequences:
        run.scheduler.add(sequence)
    while not run.scheduler.num_preemptions:
        run.step()
    assert list(run.scheduler.preempted) == [sequences[1]]
    assert run.scheduler.pool.num_free < 2
    assert sequences[1].lease is not None
    run.run()
    assert run.done == {sequence.request_id: answer(sequence) for sequence in sequences}


def test_preempted_sequences_go_before_waiting_ones(make_sequence: MakeSequence) -> None:
    run = simulation(num_pages=4, prefix_caching=False)
    first, second = (make_sequence(prompt=[i] * 7, max_tokens=6) for i in range(2))
    third = make_sequence(prompt=[2] * 8, max_tokens=1)
    run.run([first, second, third])
    assert run.scheduler.num_preemptions
    assert list(run.done) == [s.request_id for s in (first, second, third)]


def test_the_oldest_of_those_preempted_comes_back_first(make_sequence: MakeSequence) -> None:
    run = simulation(num_pages=12, prefix_caching=False)
    sequences = [make_sequence(prompt=[i] * 15, max_tokens=20) for i in range(3)]
    for sequence in sequences:
        run.scheduler.add(sequence)
    while len(run.scheduler.preempted) < 2:
        run.step()
    assert list(run.scheduler.preempted) == sequences[1:]
    run.run()
    assert list(run.done) == [sequence.request_id for sequence in sequences]


def test_prompt_logprobs_are_computed_in_bounded_chunks(make_sequence: MakeSequence) -> None:
    run = simulation(num_pages=200, budget=4 * PROMPT_LOGPROBS_CHUNK)
    run.scheduler.add(make_sequence(prompt=[1] * 600, max_tokens=1, prompt_logprobs=0))
    chunks = [chunk for _ in range(3) for chunk in run.step().chunks]
    assert [chunk.num_logit_rows for chunk in chunks] == [256, 256, 88]


@pytest.mark.parametrize("beside", [(), ("x",)])
def test_a_sequence_that_waits_for_a_slot_is_not_starved(make_sequence: MakeSequence, beside: tuple[str, ...]) -> None:
    """Requests of resident adapters, and of the base, keep coming and must not hold the slots for ever."""
    run = simulation(num_pages=1000, residency=FakeResidency(slots=1 + len(beside)), max_running=50)
    starved = make_sequence(adapters=["b"] if not beside else ["b", "c"], max_tokens=1)
    for step in range(4 * STARVATION_STEPS):
        run.scheduler.add(make_sequence(adapters=["a"], max_tokens=8))
        run.scheduler.add(make_sequence(adapters=beside, max_tokens=8 if beside else 1))
        if step == 4:
            run.scheduler.add(starved)
        run.step()
        if starved.request_id in run.done:
            return
    raise AssertionError("it still waits for a slot")


def test_others_run_while_adapters_load(make_sequence: MakeSequence) -> None:
    run = simulation(residency=FakeResidency(fetch_steps=10, copy_steps=10))
    run.scheduler.add(make_sequence(adapters=["a"], max_tokens=1))
    base = make_sequence(max_tokens=12)
    run.scheduler.add(base)
    for _ in range(12):
        assert [chunk.sequence for chunk in run.step().chunks] == [base]
    run.run()


def test_adapters_are_fetched_for_only_a_few_behind_those_that_run(make_sequence: MakeSequence) -> None:
    residency = FakeResidency(slots=20)
    run = simulation(residency=residency, max_running=2)
    for i in range(12):
        run.scheduler.add(make_sequence(adapters=[f"adapter-{i}"], max_tokens=4))
    run.step()
    assert len(residency.prepared) == 2 + PREFETCH


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_sequence_can_be_removed_at_any_time(make_sequence: MakeSequence, data: st.DataObject) -> None:
    residency = FakeResidency(slots=2, copy_steps=1)
    run = simulation(num_pages=8, residency=residency, budget=6, max_running=3)
    sequences = [make_sequence([1] * (3 + i), [["a"], [], ["b", "c"]][i % 3], max_tokens=5) for i in range(8)]
    for sequence in sequences:
        run.scheduler.add(sequence)
    for sequence in data.draw(st.permutations(sequences)):
        for _ in range(data.draw(st.integers(0, 4))):
            run.step()
        if sequence.request_id not in run.done:
            run.scheduler.remove(sequence)
        run.scheduler.check_integrity()
    assert not run.scheduler.has_work()
    assert run.scheduler.pool.num_used == 0
    assert not any(residency.holders.values())


def test_payers_that_are_gone_are_forgotten(make_sequence: MakeSequence) -> None:
    run = simulation(num_pages=4)
    for i in range(3000):
        run.run([make_sequence(adapters=[f"adapter-{i}"], tenant=f"tenant-{i % 2000}", max_tokens=1)])
    lines = run.scheduler.waiting._lines
    assert len(run.scheduler.waiting._counters.served) == len(lines) < 1500
    assert sum(len(line.counters.served) for line in lines.values()) < 1500


@pytest.mark.parametrize("weights", [{"a": 1.0, "b": 1.0}, {"a": 3.0, "b": 1.0}])
def test_tenants_that_always_have_work_share_the_engine_by_weight(
    make_sequence: MakeSequence, weights: dict[str, float]
) -> None:
    """However many requests each sends, at whichever priority, and whatever adapters they are for."""
    run = simulation(num_pages=200, max_running=4, budget=12)
    for i in range(200):
        for tenant, count in (("a", 1), ("b", 4)):
            for j in range(count):
                adapters = [f"{tenant}{j % 2}"] if i % 2 else []
                run.scheduler.add(
                    make_sequence(
                        [1] * 4,
                        adapters,
                        priority=-j,
                        tenant=tenant,
                        weight=weights[tenant],
                        max_tokens=1 + (i + j) % 7,
                    )
                )
    tokens = Counter[str]()
    for _ in range(150):
        for chunk in run.step().chunks:
            tokens[chunk.sequence.tenant] += chunk.num_tokens
    assert tokens["a"] / weights["a"] == pytest.approx(tokens["b"] / weights["b"], abs=4 * 11)


def test_a_newcomer_does_not_wait_for_the_end_of_what_another_has_begun(make_sequence: MakeSequence) -> None:
    run = simulation(num_pages=2000, max_running=4)
    hogs = [make_sequence([i], ["a"], tenant="hog", max_tokens=110) for i in range(8)]
    for sequence in hogs:
        run.scheduler.add(sequence)
    for _ in range(LEAST_TURN + 1):
        run.step()
    newcomers = [make_sequence([i], ["b"], tenant="newcomer", max_tokens=40) for i in range(8)]
    for sequence in newcomers:
        run.scheduler.add(sequence)
    for _ in range(2):
        assert len(run.step().prefills) == 1, "one seat a step"
    assert Counter(s.tenant for s in run.scheduler.running) == {"hog": 2, "newcomer": 2}
    assert {s for s in run.scheduler.running if s.tenant == "hog"} == set(hogs[:2]), "the newest have left"
    for _ in range(30):
        run.step()
    assert run.scheduler.num_preemptions == 2, "each has its share"
    run.run()
    assert run.done == {sequence.request_id: answer(sequence) for sequence in [*hogs, *newcomers]}


def test_the_one_whose_seat_is_taken_back_is_the_first_of_its_tenant_to_go_on(make_sequence: MakeSequence) -> None:
    run = simulation(num_pages=2000, max_running=2)
    hogs = [make_sequence([i], tenant="hog", max_tokens=100) for i in range(4)]
    for sequence in hogs:
        run.scheduler.add(sequence)
    for _ in range(LEAST_TURN + 1):
        run.step()
    newcomer = make_sequence([9], tenant="newcomer", max_tokens=2)
    run.run([newcomer])
    assert list(run.done) == [sequence.request_id for sequence in (newcomer, *hogs)]


def test_a_newcomer_does_not_wait_for_pages_that_another_holds(make_sequence: MakeSequence) -> None:
    """Nor for what was preempted of the other, which has more than its share even so."""
    run = simulation(num_pages=40, max_running=12, prefix_caching=False)
    hogs = [make_sequence([i] * 8, ["a"], tenant="hog", max_tokens=60) for i in range(12)]
    for sequence in hogs:
        run.scheduler.add(sequence)
    while run.scheduler.pool.num_free or not run.scheduler.preempted:
        run.step()
    newcomers = [make_sequence([i] * 30, ["b"], tenant="newcomer", max_tokens=20) for i in range(2)]
    for sequence in newcomers:
        run.scheduler.add(sequence)
    for _ in range(LEAST_TURN):
        if any(sequence in run.scheduler.running for sequence in newcomers):
            break
        run.step()
    assert newcomers[0] in run.scheduler.running
    run.run()
    assert run.done == {sequence.request_id: answer(sequence) for sequence in [*hogs, *newcomers]}
    assert not any(sequence.turns_lost for sequence in newcomers)
    first = [*run.done].index(newcomers[0].request_id)
    assert first < len(hogs) / 2, "it was preempted for those of the other"


def test_what_is_large_is_not_passed_for_ever(make_sequence: MakeSequence) -> None:
    """One that needs more than its tenant's share waits for what is free, and others do not take that meanwhile."""
    run = simulation(num_pages=40, max_running=20, budget=256, prefix_caching=False)
    large = make_sequence([0] * 120, tenant="large", max_tokens=4)
    for i in range(400):
        run.scheduler.add(make_sequence([i] * 4, tenant=f"small-{i % 3}", max_tokens=20))
    for _ in range(10):
        run.step()
    run.scheduler.add(large)
    for _ in range(120):
        run.step()
    assert large.request_id in run.done


tenants_at_work = st.lists(
    st.tuples(
        st.integers(0, 60),  # step of arrival
        st.sampled_from("abcdef"),
        st.integers(1, 6),  # tokens of prompt
        st.integers(1, 8) | st.integers(50, 90),  # and of the answer
    ),
    min_size=1,
    max_size=16,
)


@settings(max_examples=25, deadline=None)
@given(
    work=tenants_at_work,
    weights=st.fixed_dictionaries({tenant: st.sampled_from([0.25, 1.0, 3.0]) for tenant in "abcdef"}),
    max_running=st.integers(1, 6),
    overlapped=st.booleans(),
    prefix_caching=st.booleans(),
)
def test_seats_go_to_whoever_has_less_than_its_share(
    make_sequence: MakeSequence,
    work: list[tuple[int, str, int, int]],
    weights: dict[str, float],
    max_running: int,
    overlapped: bool,
    prefix_caching: bool,
) -> None:
    """Nobody who waits for long has less than its share while another has more that may be taken."""
    run = simulation(4000, max_running=max_running, overlapped=overlapped, prefix_caching=prefix_caching)

    def check() -> None:
        for _ in range(max_running):
            if not who_lacks(run, max_running):
                return
            run.step()
        assert not who_lacks(run, max_running), "as many steps as there are seats were not enough"

    work_off(run, make_sequence, work, weights, check)


@settings(max_examples=40, deadline=None)
@given(
    work=tenants_at_work,
    weights=st.fixed_dictionaries({tenant: st.sampled_from([0.25, 1.0, 3.0]) for tenant in "abcdef"}),
    num_pages=st.integers(24, 60),
    overlapped=st.booleans(),
    prefix_caching=st.booleans(),
)
def test_whoever_gives_its_pages_gets_them_again(
    make_sequence: MakeSequence,
    work: list[tuple[int, str, int, int]],
    weights: dict[str, float],
    num_pages: int,
    overlapped: bool,
    prefix_caching: bool,
) -> None:
    run = simulation(num_pages, max_running=16, overlapped=overlapped, prefix_caching=prefix_caching)

    def check() -> None:
        ages = [sequence.arrival for sequence in run.scheduler.preempted]
        assert ages == sorted(ages), "they go on in another order than they came in"

    work_off(run, make_sequence, work, weights, check)


def work_off(
    run: Simulation,
    make_sequence: MakeSequence,
    work: list[tuple[int, str, int, int]],
    weights: dict[str, float],
    check: Callable[[], None],
) -> None:
    """Run all of the tenants' work, and check after each step. Everybody is answered, and set back boundedly often."""
    made = [
        (step, make_sequence([0] * n, tenant=tenant, weight=weights[tenant], max_tokens=most))
        for step, tenant, n, most in sorted(work)
    ]
    arriving = deque(made)
    for step in range(MOST_STEPS):
        while arriving and arriving[0][0] <= step:
            run.scheduler.add(arriving.popleft()[1])
        run.step()
        check()
        if not arriving and not run.scheduler.has_work():
            break
    sequences = [sequence for _, sequence in made]
    assert run.done == {sequence.request_id: answer(sequence) for sequence in sequences}
    for sequence in sequences:
        assert LEAST_TURN * (2**sequence.turns_lost - 1) <= len(sequence.tokens), "set back too often"


def who_lacks(run: Simulation, num_seats: int) -> list[str]:
    """Tenants that wait with less than their share while another's seat could be taken back."""
    if len(run.scheduler.running) < num_seats:
        return []
    shares = Shares(num_seats, run.scheduler.running, run.scheduler.waiting.weights())
    if shares.giver(run.scheduler._running.decodes) is None:
        return []
    return [tenant for tenant in run.scheduler.waiting.weights() if shares.lacks(tenant)]


def test_a_text_that_comes_again_begins_behind_a_snapshot(make_sequence: MakeSequence) -> None:
    run = simulation(num_pages=64, page_size=4, budget=64, snapshots=2)
    run.run([make_sequence(prompt=range(40))])
    longer = make_sequence(prompt=range(60))
    run.run([longer])
    assert longer.num_cached == 36, "the last page of the prompt that leaves a token to run"
    assert len(run.scheduler.snapshots) == 2
    run.run([make_sequence(prompt=range(100, 140)), make_sequence(prompt=range(200, 240))])
    gone = make_sequence(prompt=range(60))
    run.run([gone])
    assert gone.num_cached == 0, "its slots were needed: pages alone are no prefix"


def test_sequences_with_one_prompt_wait_for_the_first_of_them(make_sequence: MakeSequence) -> None:
    run = simulation(num_pages=64, page_size=4, budget=16, snapshots=2)
    sequences = [make_sequence(prompt=range(49), max_tokens=2) for _ in range(4)]
    run.run(sequences)
    assert [sequence.num_cached for sequence in sequences] == [0, 48, 48, 48]


def test_a_snapshot_goes_with_its_page(make_sequence: MakeSequence) -> None:
    run = simulation(num_pages=14, page_size=4, snapshots=4)
    run.run([make_sequence(prompt=range(40))])
    assert len(run.scheduler.snapshots) == 1
    run.run([make_sequence(prompt=range(100, 140))])
    assert len(run.scheduler.snapshots) == 1
    run.scheduler.forget_prefixes()
    assert len(run.scheduler.snapshots) == 0


def test_a_step_that_fails_takes_no_slot_with_it(make_sequence: MakeSequence) -> None:
    """Also where the next step, which is on its way, makes a copy of its own."""
    run = simulation(num_pages=64, page_size=4, snapshots=1)
    run.scheduler.add(failing := make_sequence(prompt=range(40)))
    batch = run.scheduler.schedule()
    assert batch.prefills[0].save is not None
    run.scheduler.forget_prefixes()
    run.scheduler.launched(batch)
    assert len(run.scheduler.snapshots) == 0
    run.scheduler.remove(failing)
    run.run([make_sequence(prompt=range(40))])
    assert len(run.scheduler.snapshots) == 1
