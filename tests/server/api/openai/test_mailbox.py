import asyncio

from peftserve.server.api.openai.mailbox import Mailbox


async def test_all_that_has_come_is_taken_at_once_and_in_order():
    mailbox = Mailbox()
    for i in range(3):
        mailbox.put(i)
    assert await mailbox.take() == [0, 1, 2]
    mailbox.put(3)
    assert await mailbox.take() == [3]


async def test_a_reader_that_waits_is_woken_once_for_what_comes_in_one_turn():
    mailbox = Mailbox()
    reader = asyncio.create_task(mailbox.take())
    await asyncio.sleep(0)
    mailbox.put("a")
    mailbox.put("b")
    assert await reader == ["a", "b"]


async def test_a_reader_that_is_cancelled_takes_nothing_with_it():
    mailbox = Mailbox()
    reader = asyncio.create_task(mailbox.take())
    await asyncio.sleep(0)
    reader.cancel()
    await asyncio.wait([reader])
    mailbox.put("a")
    assert await mailbox.take() == ["a"]
