"""`peftserve bench kernels`: the bypasses alone, on their own data, beside any peers, as multiples of the floor."""
