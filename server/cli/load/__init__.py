"""The load generator: which requests come when, how they are asked, and what came back.

A trace is drawn from a workload and a seed before anything is sent, so every server gets the same one.
"""
