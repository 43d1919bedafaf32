"""Faults of a server: crashes, failing disks, jumping clocks, hostile clients, and what must hold through all of them.

`python -m tests.faults --minutes N --seed S` runs all of it for as long as it is given; pytest runs the same code with
small numbers.
"""
