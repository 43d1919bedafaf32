"""What this room uses of a library beyond its documentation. One module a library; each says why, and what instead."""
