"""OpenAI's Responses API, without its store: a request is translated into a chat, and the chat's answer into items."""
