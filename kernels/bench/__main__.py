"""`python -m peftserve.kernels.bench`, for a machine without what the server needs."""

import sys

from .main import run

sys.exit(run())
