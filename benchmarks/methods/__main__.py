"""`python -m benchmarks.methods`: each PEFT method's cost in a decode step."""

import sys

from .main import main

sys.exit(main())
