"""Names of adapters and routes in paths: `/v1/adapters/{name:named}/files` is of `org/name` as of `name`.

A slash may be sent as it is or as `%2F`. No part of a name behind a slash is a verb (`adapters/names.py`), so a path
has one meaning, in whatever order the routes are declared.
"""

from starlette.convertors import Convertor, register_url_convertor

from peftserve.adapters.names import VERBS


class NameConvertor(Convertor[str]):
    """One or more parts of a path, up to the end or a verb."""

    regex = rf"[^/]+(?:/(?!(?:{'|'.join(VERBS)})(?:/|$))[^/]+)*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("named", NameConvertor())
