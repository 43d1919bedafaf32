"""An assistant's text to the parts of its message: content, reasoning and calls of tools, by the model's own format.

Knows text only; must not know requests, tokens, or the engine.
"""
