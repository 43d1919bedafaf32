"""`python -m benchmarks.kernels`: the bypasses of a batch alone, beside other implementations."""

import sys

from .main import run

sys.exit(run())
