"""Merged checkpoints: the base with adapters folded into its weights, written in Hugging Face format."""
