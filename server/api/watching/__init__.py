"""What is known of a request when it ends, and where it goes: access logs, traces.

Knows ASGI's messages and the engine's outputs; must not know routes, adapters, or what is said in requests.
"""
