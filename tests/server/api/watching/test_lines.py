import asyncio
import os
import select

import pytest

from peftserve.server.api.watching import lines
from peftserve.server.api.watching.lines import LineWriter


@pytest.fixture
def pipe():
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


async def test_lines_come_in_order_and_all_of_them(pipe):
    writer = LineWriter(pipe[1])
    for number in range(100):
        writer.put(b"%d\n" % number)
        if number == 50:
            await asyncio.sleep(2 * lines.PAUSE)
    await writer.close()
    assert os.read(pipe[0], 1 << 16) == b"".join(b"%d\n" % number for number in range(100))


async def test_a_reader_that_stops_stops_nobody_else(pipe, until, monkeypatch):
    monkeypatch.setattr(lines, "MOST", 10)
    writer = LineWriter(pipe[1])
    writer.put(b"x" * (1 << 20) + b"\n")  # more than a pipe holds
    await until(lambda: select.select([pipe[0]], [], [], 0)[0])  # it is being written
    for _ in range(15):
        writer.put(b"y\n")
    assert writer.dropped == 5
    closing = asyncio.create_task(writer.close())
    received = b""
    while not received.endswith(b"y\n" * 10):
        received += await asyncio.to_thread(os.read, pipe[0], 1 << 16)
    await closing
    assert len(received) == (1 << 20) + 1 + 20


async def test_nobody_reads_any_more():
    reader, end = os.pipe()
    os.close(reader)
    writer = LineWriter(end)
    writer.put(b"x\n")
    await writer.close()
    os.close(end)
