"""The table of all settings of `peftserve serve`, from the one list that the command line is made of."""

from peftserve.server.cli.settings.setting import Setting
from peftserve.server.cli.settings.table import SETTINGS


def settings_table() -> str:
    rows = [f"| {_flag(setting)} | {_default(setting)} | {setting.help} |" for setting in SETTINGS]
    return "\n".join(["| setting | default | meaning |", "| --- | --- | --- |", *rows])


def _flag(setting: Setting) -> str:
    name = "MODEL" if setting.name == "model" else f"--{setting.name} {setting.metavar}".strip()
    return "`" + name.replace("|", "\\|") + "`"


def _default(setting: Setting) -> str:
    if setting.shown or setting.default is None:
        return setting.shown
    return ("yes" if setting.default else "no") if setting.is_switch else f"`{setting.default}`"
