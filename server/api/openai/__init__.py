"""OpenAI's completions and chats: bodies, plans, answers, streams."""
