"""Other people's clients, run as their users run them against a real server."""
