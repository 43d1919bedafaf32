"""One setting of `peftserve serve`.

Defaults stand in `server/config.py` and nowhere else: a setting takes that of the field which has its name.
"""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from ...config import EngineConfig, ServerConfig
from ...sizes import show_size
from .. import values

ENV_PREFIX = "PEFTSERVE_"
DEFAULTS: Mapping[str, Any] = {
    # No fields of a configuration: adapters are always on, and calls are always read.
    "enable_lora": True,
    "enable_auto_tool_choice": True,
    **{f.name: f.default for kind in (EngineConfig, ServerConfig) for f in fields(kind) if f.default is not MISSING},
}


@dataclass(frozen=True)
class Setting:
    """One setting.

    name: the flag without its dashes. parse: from text to a value, or ValueError. many: may be given several times.
    computed: how the default is described where there is no fixed value and the start works it out.
    nargs: argparse's, where one occurrence of the flag takes several values.
    is_secret: errors do not say the value.
    """

    name: str
    metavar: str
    parse: Callable[[str], Any]
    help: str
    computed: str = ""
    many: bool = False
    nargs: str | None = None
    is_secret: bool = False

    @property
    def key(self) -> str:
        return self.name.replace("-", "_")

    @property
    def env(self) -> str:
        return ENV_PREFIX + self.key.upper()

    @property
    def is_switch(self) -> bool:
        return self.parse is values.boolean

    @property
    def default(self) -> Any:
        """Return the value when nothing sets it: the configuration's own; None where that has none."""
        return DEFAULTS.get(self.key)

    @property
    def shown(self) -> str:
        """Return the default as people write it, for sizes, seconds and what is worked out; `""` for all others."""
        if self.computed or self.is_switch or self.default is None:
            return self.computed
        if self.parse in (values.size, values.size_or_none) and self.default:
            return show_size(self.default)
        return f"{self.default:g}" if self.parse is values.seconds or self.default == 0 else ""


COUNT = values.whole(1)
