"""The exporter rebuilds its table of ops at each call, 0.6 s; here it is built once a process."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest


@pytest.fixture(scope="session", autouse=True)
def _one_op_table() -> Iterator[None]:
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        build: Any = ONNXRegistry.from_torchlib
    except (ImportError, AttributeError):  # private: without it the tests are slower, not wrong
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(cache(build)))
        yield
