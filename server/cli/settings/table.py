"""The settings of `peftserve serve`. Flags, environment variables, keys of the configuration file and the documented
table all come from `SETTINGS`; a flag wins over the environment, that over the file, that over the default.
"""

from .adapters import ADAPTERS
from .base import BASE
from .clients import CLIENTS
from .listening import LISTENING
from .setting import Setting

SETTINGS: tuple[Setting, ...] = (*BASE, *LISTENING, *ADAPTERS, *CLIENTS)
