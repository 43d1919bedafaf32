"""State beside the KV cache: what recurrent and convolutional mixers carry from one token of a sequence to the next.

tracing   which modules keep state, found by a pass with transformers' own cache
pool      slots of state on the device, one for each sequence that runs, and snapshots
parts     the rows of a step as parts that a mixer can run
view      what a mixer is given in place of transformers' cache
joining   parts of a step meet wherever a call is for all its rows
mixers    the modules, wrapped
"""
