"""HTTP/1.1 with limits: the server, its connections, bodies, keys and errors.

Knows uvicorn, ASGI and OpenAI's envelope of errors; must not know routes, text, or other processes but by their counts.
"""
