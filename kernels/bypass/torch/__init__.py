"""The bypasses in torch operators, for CPUs."""
