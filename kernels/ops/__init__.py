"""The primitives beside the low-rank bypass: their formulas, and the plan of a step."""
