"""Low-rank terms inside mixtures of experts: all adapters and experts of a step as grouped products."""
