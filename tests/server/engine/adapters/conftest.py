"""Blobs without adapters in them."""

from collections.abc import Callable

import pytest
import torch

from peftserve.kernels.bypass.layout import GroupLayout
from peftserve.server.engine.adapters.packing import AdapterLayout, Blob


@pytest.fixture(scope="session")
def make_blob() -> Callable[[int], Blob]:
    """Makes a blob of so many float32 elements."""

    def make(elements: int, value: float = 0.0) -> Blob:
        return Blob(
            torch.full((elements,), value), AdapterLayout({0: GroupLayout(a=0, ranks=(1,), b=(elements // 2,))})
        )

    return make
