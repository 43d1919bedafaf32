"""Merges: several LoRA adapters joined to one, as PEFT's `add_weighted_adapter` does and by methods that it lacks.

`plan` decides, from configurations and headers, what is written, and refuses what cannot be merged; it needs no torch.
`run` computes it, site by site. `__main__` is the process in which a server lets that happen.
"""
