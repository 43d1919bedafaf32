import random

import pytest

from peftserve.server.wire.framing import Unframer, framed


@pytest.mark.parametrize("piece", [1, 3, 4, 5, 64, 1 << 20])
def test_messages_come_whole_and_in_order_however_they_are_cut(piece):
    messages = [random.Random(size).randbytes(size) for size in (0, 1, 3, 4, 5, 300, 0, 70_000, 2)]
    stream, unframer = b"".join(map(framed, messages)), Unframer()
    pieces = [stream[i : i + piece] for i in range(0, len(stream), piece)]
    assert [bytes(message) for data in pieces for message in unframer.push(data)] == messages
