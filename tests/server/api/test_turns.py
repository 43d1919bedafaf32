import asyncio

from peftserve.server.api.turns import TURN, Turns


async def test_others_have_their_turn_when_the_time_is_spent_and_not_before():
    seen = []
    turns = Turns()
    for step in range(10):
        asyncio.get_running_loop().call_soon(seen.append, step)
        await turns.spend(TURN // 4)
        seen.append("x")
    assert seen[:6] == ["x", "x", "x", "x", 0, 1]
    assert seen.count("x") == 10
