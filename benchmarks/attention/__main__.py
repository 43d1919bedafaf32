"""`python -m benchmarks.attention`: paged attention of one layer on a GPU."""

import sys

from .main import main

sys.exit(main())
