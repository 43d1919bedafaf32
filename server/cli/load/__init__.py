"""The load generator of `peftserve bench serve`.

A trace is drawn from a workload and a seed before anything is sent, so every server gets the same one.
"""
