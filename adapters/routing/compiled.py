"""The policies of routes, made once for each version of a route and kept while they are used.

A version of a name never means anything else, in any process, so nothing here can be out of date.
"""

import threading
from collections import OrderedDict

from .policies import KINDS, Policy
from .query import PolicyNeeded
from .stored import Route

MAX_KEPT = 256


class CompiledRoutes:
    """The policies that were used last."""

    def __init__(self, most: int = MAX_KEPT) -> None:
        self._most = most
        self._policies: OrderedDict[tuple[str, int], Policy] = OrderedDict()
        self._lock = threading.Lock()  # slow ones are made on threads

    def policy(self, route: Route) -> Policy:
        """Return the policy of a route. Raises PolicyNeeded if it takes a while to make."""
        key = route.name, route.version
        with self._lock:
            policy = self._policies.get(key)
            if policy is not None:
                self._policies.move_to_end(key)
                return policy
        body = route.body()
        kind = KINDS[type(body)]
        if kind.is_slow:
            raise PolicyNeeded(lambda: self._keep(key, kind.make(body, route)))
        return self._keep(key, kind.make(body, route))

    def _keep(self, key: tuple[str, int], policy: Policy) -> Policy:
        with self._lock:
            self._policies[key] = policy
            while len(self._policies) > self._most:
                self._policies.popitem(last=False)
        return policy
