"""`python -m benchmarks.model_types`: which types of model are served exactly."""

import sys

from .main import main

sys.exit(main())
