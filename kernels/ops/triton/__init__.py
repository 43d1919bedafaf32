"""The primitives beside the low-rank bypass on a GPU: one launch for all adapters of a step at a site."""
