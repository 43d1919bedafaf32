"""Work on the event loop in turns: what one request takes a while for is done a few milliseconds at a time."""

import asyncio

TURN = 4000  # microseconds, as estimated by who spends them


class Turns:
    """For one piece of work after another; others have their turn in between."""

    def __init__(self) -> None:
        self._left = TURN

    async def spend(self, microseconds: int) -> None:
        """Returns at once while there is time left, else when all that waited has run."""
        self._left -= microseconds
        if self._left < 0:
            self._left = TURN
            await asyncio.sleep(0)
