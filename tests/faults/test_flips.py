import random
from pathlib import Path

import pytest

from . import flips

pytestmark = pytest.mark.slow


def test_one_bit_harms_one_adapter_at_most(quick_folder: Path) -> None:
    flips.run(quick_folder, random.Random(1), 40)
