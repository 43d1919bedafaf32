"""The settings of `peftserve serve`: flags, variables and keys of the configuration file, in one table."""
