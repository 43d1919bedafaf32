"""One sequence on its way through: from an API process to a replica, and its outputs back."""

from collections.abc import Callable

from ..api.engine.interface import EngineDead
from ..wire.messages import AddRequest, SequenceOutput
from .door import Client
from .replica import Replica


class Sequence:
    """A sequence that has not ended, as the sink of its outputs. Where it runs is set by `begin`.

    ended: called once, when its last output has come. lost: called when its replica has gone.
    """

    def __init__(
        self,
        request: AddRequest,
        client: Client,
        ended: Callable[["Sequence"], None],
        lost: Callable[["Sequence"], None],
    ) -> None:
        self.request = request
        self.client = client
        self.has_said = False  # whether the client has heard of it: then it cannot begin anew elsewhere
        self.num_begun = 0
        self.replica: Replica | None = None  # set by begin()
        self._ended = ended
        self._lost = lost

    def begin(self, replica: Replica) -> None:
        """Run it on a replica. Raises EngineDead."""
        replica.submit(self.request, self)
        self.replica = replica
        self.num_begun += 1

    def push(self, output: SequenceOutput) -> None:
        self.has_said = True
        self.client.tell(output)
        if output.finish_reason is not None or output.error is not None:
            self.leave()
            self._ended(self)

    def fail(self, death: EngineDead) -> None:
        self.leave()
        self._lost(self)

    def abort(self) -> None:
        """End it where it runs; nothing more is said of it."""
        if self.replica is not None:
            self.replica.abort(self.request.request_id)

    def leave(self) -> None:
        if self.replica is not None:
            self.replica.forget(self.request.request_id)
        self.replica = None
