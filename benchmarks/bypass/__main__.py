"""`python -m benchmarks.bypass`: the bypasses on this machine's CPU."""

from .main import main

main()
