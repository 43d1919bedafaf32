"""Bypasses inside the base's own products: B in spare columns behind the weight's, h behind the input."""
