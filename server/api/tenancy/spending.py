"""The tokens that one request costs: set aside when it begins, and settled when it ends."""

import math
from dataclasses import dataclass, field

from .buckets import MINUTE, TokenBuckets
from .tenant import Tenant


@dataclass
class TokenUse:
    """The tokens of one request. prompt: of its prompts. most: that it may generate. generated: until now."""

    prompt: int = 0
    most: int = 0
    generated: int = 0


class NoTokens(Exception):
    """A tenant has too few tokens left now. seconds: until it has enough, if nobody spends any meanwhile."""

    def __init__(self, message: str, seconds: int) -> None:
        super().__init__(message)
        self.seconds = seconds


@dataclass
class Spending:
    """What a request of a tenant spends out of its bucket. A request may cost all that a minute gives, and not more at
    once: what it costs beyond that is owed. Does nothing where the tenant has no limit.
    """

    buckets: TokenBuckets
    tenant: Tenant
    use: TokenUse
    _set_aside: int = field(default=0, init=False)

    def begin(self) -> None:
        """Set the tokens aside. Raises NoTokens, and nothing is set aside then."""
        limit = self.tenant.tokens_per_minute
        if not limit:
            return
        wanted = min(self.use.prompt + self.use.most, limit)
        left = self.buckets.spend(self.tenant.name, limit, wanted, least=wanted)
        if left < wanted:
            raise NoTokens(
                f"This key may use {limit} tokens a minute; {max(math.floor(left), 0)} are left now, and the request "
                f"may take {wanted}. Try again later.",
                max(math.ceil((wanted - left) * MINUTE / limit), 1),
            )
        self._set_aside = wanted

    def end(self) -> None:
        """Give back what was set aside and not used, or take what was used beyond that."""
        if limit := self.tenant.tokens_per_minute:
            used = self.use.prompt + self.use.generated
            self.buckets.spend(self.tenant.name, limit, used - self._set_aside)
            self._set_aside = used

    def headers(self) -> dict[str, str]:
        """Return OpenAI's headers of a tenant's limit; none where it has none."""
        limit = self.tenant.tokens_per_minute
        if not limit:
            return {}
        left = self.buckets.balance(self.tenant.name, limit)
        return {
            "x-ratelimit-limit-tokens": str(limit),
            "x-ratelimit-remaining-tokens": str(max(math.floor(left), 0)),
            "x-ratelimit-reset-tokens": f"{max(limit - left, 0.0) * MINUTE / limit:.3f}s",
        }
