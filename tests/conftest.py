"""What every test shares: one thread a worker, and the hypothesis profiles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

# Each xdist worker is a process of its own: torch's threads on top of that only fight over the
# cores.
torch.set_num_threads(1)

# A generated model is traced, run and exported: no example meets hypothesis' 200 ms. The suite
# draws the same models each time, so that a red run is a change's doing; the campaign looks for
# new ones.
settings.register_profile(
    "suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "campaign",
    settings.get_profile("suite"),
    derandomize=False,
    max_examples=10_000,
    print_blob=True,
)
settings.load_profile("suite")

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with the file of that name in tests/golden; --update-golden rewrites it."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert text == path.read_text(), f"{path} differs: see the diff after --update-golden"

    return check
