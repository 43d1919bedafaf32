"""HTTP/1.1 with limits: connections, bodies, keys, errors."""
