"""The engine as the API sees it: its interface, the client of a connection to it, and the process that runs it.

Knows the messages of `server/wire`; must not know HTTP, text, or names of adapters.
"""
