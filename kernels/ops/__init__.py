"""The primitives beside the low-rank bypass: their formulas, and a step's plan of them."""
