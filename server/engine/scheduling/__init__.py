"""Which sequences run in a step, and on which pages. Pure bookkeeping: no torch, no model."""
