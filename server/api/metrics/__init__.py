"""Counters and histograms, the engine's state, and their sums over all processes, as Prometheus reads them.

Knows prometheus-client and the engine's messages; must not know HTTP, or which processes there are.
"""
