"""transformers' model with our paged attention and a hook at every site. No model code, no scheduling."""
