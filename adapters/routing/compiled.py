"""The policies of routes, made once for each version of a route and kept while they are used.

A version of a name never means anything else, in any process, so nothing here can be out of date.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable

from .bodies import Body
from .policies import KINDS, Policy
from .query import PolicyNeeded
from .stored import Route, RouteHead

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
        self._making = threading.Lock()  # one at a time, and so each once, however many requests ask for it

    def policy(self, head: RouteHead, read: Callable[[], Route]) -> Policy:
        """Return the policy of a route. Raises PolicyNeeded if it takes a while to make.

        read: returns the route with its body, which is read only to make the policy.
        """
        policy = self._kept(head)
        if policy is not None:
            return policy
        route = read()
        body = route.body()
        if KINDS[type(body)].is_slow:
            raise PolicyNeeded(lambda: self._make_slowly(route, body))
        return self._make(route, body)

    def _kept(self, head: RouteHead) -> Policy | None:
        key = head.name, head.version
        with self._lock:
            policy = self._policies.get(key)
            if policy is not None:
                self._policies.move_to_end(key)
        return policy

    def _make_slowly(self, route: Route, body: Body) -> Policy:
        with self._making:
            return self._kept(route.head) or self._make(route, body)

    def _make(self, route: Route, body: Body) -> Policy:
        return self._keep((route.name, route.version), KINDS[type(body)].make(body, route), len(route.text))

    def _keep(self, key: tuple[str, int], policy: Policy, text: int) -> Policy:
        with self._lock:
            self._policies[key] = policy
            self._texts[key] = text
            while len(self._policies) > 1 and self._is_full():
                del self._texts[self._policies.popitem(last=False)[0]]
        return policy

    def _is_full(self) -> bool:
        return len(self._policies) > self._most or sum(self._texts.values()) > self._most_text
