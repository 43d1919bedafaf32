"""The command line. `peftserve --help` imports neither torch nor the server."""
