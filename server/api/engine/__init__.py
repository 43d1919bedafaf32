"""The engine as the API sees it: its interface, the client, and the process."""
