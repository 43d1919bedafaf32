"""The other ranks' side: does what the first one says, in the order in which it says it."""

import logging
from concurrent.futures import Future
from multiprocessing.connection import Connection
from pathlib import Path

from ...wire.messages import SamplingParams
from ..adapters.loader import Load
from ..adapters.packing import Blob
from ..adapters.preparation import PreparedAdapter
from ..adapters.service import AdapterService
from ..model.runner import ModelRunner
from ..scheduling.batch import Batch, Chunk
from ..scheduling.sequence import VIRTUAL, Lease, Sequence
from . import messages
from .messages import Attach, Begin, Detach, Forget, Loaded, Step, StepChunk, Stop, Told, decode_told, encode

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.002  # while an adapter is on its way


class Follower:
    """One rank that follows. Runs until the first says `Stop`, or is gone."""

    def __init__(self, runner: ModelRunner, adapters: AdapterService, pipe: Connection) -> None:
        self._runner = runner
        self._adapters = FollowedAdapters(adapters)
        self._sequences = FollowedSequences()
        self._pipe = pipe

    def run(self) -> None:
        while True:
            for answer in self._adapters.poll():
                self._pipe.send_bytes(encode(answer))
            if self._pipe.poll(POLL_SECONDS if self._adapters.is_busy() else None):
                message: Told = decode_told(self._pipe.recv_bytes())
                if isinstance(message, Stop):
                    return
                self._do(message)

    def _do(self, message: Told) -> None:
        match message:
            case Step():
                self._runner.run(self._sequences.batch(message))
            case messages.Load():
                self._adapters.load(message)
            case Attach(slot):
                self._adapters.attach(slot)
            case Detach(slot):
                self._adapters.detach(slot)
            case Forget(digest):
                self._adapters.forget(digest)


class FollowedSequences:
    """The sequences that run, by the first rank's numbers."""

    def __init__(self) -> None:
        self._sequences: dict[int, Sequence] = {}

    def batch(self, step: Step) -> Batch:
        """Return the batch of a step, as the first rank has it."""
        for number in step.ended:
            self._sequences.pop(number, None)
        chunks = [self._chunk(chunk) for chunk in step.chunks]
        told = zip(chunks, step.chunks, strict=True)
        return Batch(chunks, [chunk for chunk, said in told if said.begin is not None])

    def _chunk(self, said: StepChunk) -> Chunk:
        if said.begin is not None:
            self._sequences[said.number] = _sequence(said.number, said.begin)
        sequence = self._sequences[said.number]
        sequence.pages += said.pages
        tokens = sequence.tokens
        tokens += [VIRTUAL] * (said.start - len(tokens))
        tokens[said.start :] = said.token_ids
        return Chunk(sequence, said.start, len(said.token_ids), said.samples, said.fill)


def _sequence(number: int, begin: Begin) -> Sequence:
    sequence = Sequence(
        request_id=str(number),
        prompt=[VIRTUAL] * begin.num_prompt,
        sampling=SamplingParams(prompt_logprobs=0 if begin.scores_prompt else None),
        adapters=(),
        salt="",
        seed=0,
        eos_token_ids=frozenset(),
    )
    sequence.pages, sequence.active_from = begin.pages, begin.active_from
    sequence.lease = Lease((), tuple(begin.slots), tuple(begin.weights))
    return sequence


class FollowedAdapters:
    """The adapters of this rank, at the places that the first one chooses."""

    def __init__(self, service: AdapterService) -> None:
        self._service = service
        self._fetches: dict[tuple[int, str], tuple[int, Future[Blob]]] = {}
        self._loads: dict[tuple[int, str], Load[PreparedAdapter]] = {}
        self._prepared: dict[int, PreparedAdapter] = {}

    def load(self, said: messages.Load) -> None:
        """Begin to bring an adapter's part to its place."""
        fetch = self._service.fetch(said.key, Path(said.folder))
        self._fetches[said.slot, said.key] = (said.start, fetch)

    def is_busy(self) -> bool:
        return bool(self._fetches or self._loads)

    def poll(self) -> list[Loaded]:
        """Take in what has finished. Returns what the first rank is to hear."""
        answers = []
        for place in [place for place, (_, fetch) in self._fetches.items() if fetch.done()]:
            start, fetch = self._fetches.pop(place)
            if (error := fetch.exception()) is None:
                self._service.residency.keep(place[1], fetch.result())
                self._loads[place] = self._service.load_at(fetch.result(), start)
            else:
                answers.append(_failed(place, error))
        for place in [place for place, load in self._loads.items() if load.done()]:
            answers.append(self._finish(place, self._loads.pop(place)))
        return answers

    def _finish(self, place: tuple[int, str], load: Load[PreparedAdapter]) -> Loaded:
        try:
            self._prepared[place[0]] = load.result()
        except Exception as error:
            return _failed(place, error)
        return Loaded(*place)

    def attach(self, slot: int) -> None:
        self._service.attachments.attach(slot, self._prepared.pop(slot))

    def detach(self, slot: int) -> None:
        self._service.attachments.detach(slot)

    def forget(self, digest: str) -> None:
        self._service.residency.drop(digest)


def _failed(place: tuple[int, str], error: BaseException) -> Loaded:
    logger.error("an adapter could not be loaded on this rank", exc_info=error)
    return Loaded(*place, error=f"{type(error).__name__}: {error}")
