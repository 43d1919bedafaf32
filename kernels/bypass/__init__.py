"""The low-rank bypasses of a step: how adapters lie in memory, what a step asks for, the formula, and two backends."""
