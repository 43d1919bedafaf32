"""The sub-commands of `peftserve`, in the order in which the help lists them."""

from . import adapters, bench, chat, completion, doctor, merge, models, routes, serve, state, top

COMMANDS = (serve, chat, models, adapters, routes, top, doctor, state, bench, merge, completion)
