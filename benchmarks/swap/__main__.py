"""`python -m benchmarks.swap`: the cost of moving adapters."""

import sys

from .main import main

sys.exit(main())
