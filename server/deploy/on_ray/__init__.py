"""Replicas on Ray Serve: one engine in each, found and kept by Serve, and reached over connections of their own.

Ray is an extra (`peftserve[ray]`), imported inside functions.
"""
