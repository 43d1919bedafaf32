"""The sub-commands of `peftserve`, in the order in which the help lists them."""

from . import adapters, bench, chat, completion, deploy, doctor, merge, models, routes, serve, state, top

COMMANDS = (serve, deploy, chat, models, adapters, routes, top, doctor, state, bench, merge, completion)
