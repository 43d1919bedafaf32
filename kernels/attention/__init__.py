"""Attention over pages of keys and values: what a step asks for, the formula, and the backends."""
