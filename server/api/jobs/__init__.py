"""Work that takes longer than a request: run in the background, asked for by an id, and ended with the server."""
