"""An extracted network needs nothing of ours, and may be of the original class."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import torch.nn.utils.prune
from torch import nn

import nestify
from nestify.errors import VerificationError
from tests.emit.module.networks import RECIPE, ResNet, assert_same_as_nested, attention, resnet

# --- without nestify ------------------------------------------------------------------------------


def test_runs_where_nestify_is_not_installed(tmp_path: Path) -> None:
    nested = nestify.transform(ResNet().eval(), RECIPE, (torch.randn(2, 3, 8, 8),))
    slim = nested.extract(nested.space.at(0.5))
    x = torch.randn(3, 3, 8, 8)
    (tmp_path / "slim.pickle").write_bytes(pickle.dumps(slim))
    torch.save(slim.state_dict(), tmp_path / "state.pt")
    torch.save((x, slim(x)), tmp_path / "pair.pt")
    code = """
        import pickle, sys, torch
        sys.modules["nestify"] = None
        folder = sys.argv[1]
        slim = pickle.load(open(folder + "/slim.pickle", "rb"))
        x, y = torch.load(folder + "/pair.pt")
        assert torch.equal(slim(x), y)
        slim.load_state_dict(torch.load(folder + "/state.pt"))
        slim.train()(x).sum().backward()
        assert not [name for name in sys.modules if name.startswith("nestify.")]
    """
    command = [sys.executable, "-c", textwrap.dedent(code), tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_copies_and_state_dicts() -> None:
    nested = resnet()
    slim, x = nested.extract(nested.space.at(0.5)), torch.randn(3, 3, 8, 8)
    twin = copy.deepcopy(slim)
    with torch.no_grad():
        twin.get_parameter("fc.weight").zero_()
    assert slim.get_parameter("fc.weight").abs().sum() > 0
    twin.load_state_dict(slim.state_dict())
    assert torch.equal(twin(x), slim(x))


# --- the original class ---------------------------------------------------------------------------


def test_original_class() -> None:
    nested = resnet()
    subnet = nested.space.at(0.5)
    slim = nested.extract(subnet, as_original_class=True)
    assert type(slim) is ResNet
    assert slim.layers[0].conv1.out_channels == 6
    assert_same_as_nested(nested, slim, subnet)
    assert slim.fc.weight.data_ptr() != nested.fc.weight.data_ptr()
    pickle.loads(pickle.dumps(slim))


def test_original_class_that_cannot_hold_it() -> None:
    nested = attention()
    with pytest.raises(VerificationError, match=r"Attention cannot hold this subnet: its forward"):
        nested.extract(nested.space.at(0.5), as_original_class=True)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_original_class_after_a_forward_whose_hooks_left_a_weight() -> None:
    """Such a weight has a history, which torch does not copy."""
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    nn.utils.weight_norm(model[0])
    nn.utils.prune.l1_unstructured(model[2], "weight", 0.4)
    x = torch.randn(2, 6)
    model(x).sum().backward()
    nested = nestify.transform(model, "fn3-neuron", (x,)).eval()
    original = nested.extract(nested.space.at(0.5), as_original_class=True)
    with nested.activate(nested.space.at(0.5)):
        torch.testing.assert_close(original(x), nested(x))
