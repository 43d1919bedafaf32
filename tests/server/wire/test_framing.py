import random

import pytest

from peftserve.server.wire.framing import Unframer, framed


@pytest.mark.parametrize("piece", [1, 3, 4, 5, 64, 1 << 20])
def test_messages_come_whole_and_in_order_however_they_are_cut(piece):
    messages = [random.Random(size).randbytes(size) for size in (0, 1, 3, 4, 5, 300, 0, 70_000, 2)]
    stream, unframer = b"".join(map(framed, messages)), Unframer()
    pieces = [stream[i : i + piece] for i in range(0, len(stream), piece)]
    assert [bytes(message) for data in pieces for message in unframer.push(data)] == messages


def test_a_piece_for_which_there_is_no_memory_can_be_pushed_again(monkeypatch):
    messages = [b"a" * 300, b"", b"b" * 5000]
    stream, unframer, got, tries = b"".join(map(framed, messages)), Unframer(), [], []
    cut = Unframer._cut

    def cut_every_second_time(self, data):
        tries.append(len(data))
        if len(tries) % 2:
            raise MemoryError
        return cut(self, data)

    monkeypatch.setattr(Unframer, "_cut", cut_every_second_time)
    for i in range(0, len(stream), 700):
        before = len(tries)
        try:
            got += unframer.push(stream[i : i + 700])
        except MemoryError:
            got += unframer.push(stream[i : i + 700])
            assert tries[before] == tries[before + 1]
    assert [bytes(message) for message in got] == messages
    assert tries
