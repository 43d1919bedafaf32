"""The bypasses in Triton, for GPUs."""
