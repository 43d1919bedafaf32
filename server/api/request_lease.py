"""The lease of one request: room for its sequences, its adapters, its tokens and a timer, for as long as it runs."""

from types import TracebackType

from peftserve.adapters.leases import Leases
from peftserve.adapters.resolved import Resolved

from ..wire.faults import QueueTimeout
from .admission import Admission
from .http.errors import ApiError
from .metrics.requests import Metrics, Outcome, RequestTimer
from .tenancy.spending import NoTokens, Spending


class RequestLease:
    """A lease that is taken when it is made, in the same turn of the event loop as the look-up of `resolved`.

    As a context manager it is given back at the end, with an outcome by the exception that leaves it, which learns when
    to come again if it has waited too long; otherwise call `close`. To give it back again does nothing.
    """

    def __init__(
        self,
        admission: Admission,
        leases: Leases,
        metrics: Metrics,
        resolved: Resolved,
        sequences: int,
        spending: Spending,
    ) -> None:
        """Take room for so many `sequences`, and tokens. Raises ApiError 400, 429 or 503, and nothing is held then."""
        self._metrics, self._spending = metrics, spending
        try:
            admission.enter(sequences, spending.tenant)
        except ApiError:
            self._count("refused")
            raise
        try:
            spending.begin()
        except NoTokens as error:
            admission.leave(sequences, spending.tenant)
            self._count("refused")
            headers = {"Retry-After": str(error.seconds), **spending.headers()}
            raise ApiError(429, str(error), code="rate_limit_exceeded", headers=headers) from None
        leases.acquire(resolved)
        self._admission = admission
        self._leases = leases
        self._timer = RequestTimer(metrics, resolved)
        self._resolved = resolved
        self._sequences = sequences
        self._given_back = False

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the answer that say what is left to who asks."""
        return self._spending.headers()

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._give_back("completed")
        else:  # a client that leaves cancels or closes what runs inside
            if isinstance(error, QueueTimeout):
                error.retry_seconds = self._admission.seconds_until(self._sequences)
            self._give_back("failed" if issubclass(kind, Exception) else "aborted")

    def close(self) -> None:
        """Give the lease back as aborted, unless it has been given back."""
        self._give_back("aborted")

    def _give_back(self, outcome: Outcome) -> None:
        if self._given_back:
            return
        self._given_back = True
        self._leases.release(self._resolved)
        self._timer.end(outcome)
        self._admission.leave(self._sequences, self._spending.tenant)
        self._spending.end()
        self._count(outcome)

    def _count(self, outcome: str) -> None:
        use = self._spending.use
        tokens = (0, 0) if outcome == "refused" else (use.prompt, use.generated)
        self._metrics.count_tenant(self._spending.tenant.shown, outcome, *tokens)
