"""The policies of routes, made once for each version of a route and kept while they are used.

A version of a name never means anything else, in any process, so nothing here can be out of date.
"""

import threading
from collections import OrderedDict

from .bodies import Body
from .policies import KINDS, Kind, Policy
from .query import PolicyNeeded
from .stored import Route

MAX_KEPT = 256
MAX_KEPT_TEXT = 1 << 22  # characters of all bodies together; an index of examples takes 90 bytes for one of them


class CompiledRoutes:
    """The policies that were used last."""

    def __init__(self, most: int = MAX_KEPT, most_text: int = MAX_KEPT_TEXT) -> None:
        self._most = most
        self._most_text = most_text
        self._policies: OrderedDict[tuple[str, int], Policy] = OrderedDict()
        self._texts: dict[tuple[str, int], int] = {}  # characters of each policy's body
        self._lock = threading.Lock()  # slow ones are made on threads
        self._making = threading.Lock()  # one at a time, so that who waited for the same one finds it made

    def policy(self, route: Route) -> Policy:
        """Return the policy of a route. Raises PolicyNeeded if it takes a while to make."""
        policy = self._find(route)
        if policy is not None:
            return policy
        body = route.body()
        kind = KINDS[type(body)]
        if kind.is_slow:
            raise PolicyNeeded(lambda: self._make(kind, body, route))
        return self._keep(route, kind.make(body, route))

    def _make(self, kind: Kind, body: Body, route: Route) -> None:
        with self._making:
            if self._find(route) is None:
                self._keep(route, kind.make(body, route))

    def _find(self, route: Route) -> Policy | None:
        key = route.name, route.version
        with self._lock:
            policy = self._policies.get(key)
            if policy is not None:
                self._policies.move_to_end(key)
            return policy

    def _keep(self, route: Route, policy: Policy) -> Policy:
        with self._lock:
            self._policies[route.name, route.version] = policy
            self._texts[route.name, route.version] = len(route.text)
            while len(self._policies) > 1 and self._is_full():
                del self._texts[self._policies.popitem(last=False)[0]]
        return policy

    def _is_full(self) -> bool:
        return len(self._policies) > self._most or sum(self._texts.values()) > self._most_text
