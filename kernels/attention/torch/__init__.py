"""Paged attention in torch operators, for CPUs."""
