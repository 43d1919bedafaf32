"""Adapters between disk, host memory and the device's arena. Knows digests and blobs; no names and no sequences."""
