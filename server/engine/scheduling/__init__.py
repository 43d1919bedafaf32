"""The choice of the sequences that run in a step, and of their pages. Pure bookkeeping: no torch, no model."""
