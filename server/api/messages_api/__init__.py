"""Anthropic's Messages API: a request is translated into a chat, and the chat's answer into content blocks."""
