"""Text to tokens and back, and chats to text.

Knows tokenizers and chat templates; must not know requests, answers, or the engine.
"""
