"""BatchNorm statistics from calibration data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from nestify.capture.batches import inputs_of
from nestify.errors import UsageError
from nestify.nested.batch_norm import reestimate_batch_norm

X, Y = torch.ones(2), torch.zeros(2)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [(X, (X,)), ((X, Y), (X,)), ([X, Y], (X,)), (((X, Y), Y), (X, Y)), ((X,), (X,))],
)
def test_inputs_of_a_batch(batch: Any, expected: tuple[Any, ...]) -> None:
    got = inputs_of(batch)
    assert len(got) == len(expected)
    assert all(a is b for a, b in zip(got, expected, strict=True))


def test_statistics_are_plain_averages() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3, momentum=0.1), nn.BatchNorm1d(3, momentum=None))
    net[0].running_mean.fill_(9.0)
    net.train()
    batches = [torch.randn(16, 3) + i for i in range(4)]
    assert reestimate_batch_norm(net, iter(batches)) == 4
    mean = torch.stack([b.mean(0) for b in batches]).mean(0)
    var = torch.stack([b.var(0) for b in batches]).mean(0)
    torch.testing.assert_close(net[0].running_mean, mean)
    torch.testing.assert_close(net[0].running_var, var)
    assert [norm.momentum for norm in net] == [0.1, None]
    assert not any(module.training for module in net.modules())


def test_other_layers_stay_in_eval() -> None:
    net = nn.Sequential(nn.Dropout(1.0), nn.BatchNorm1d(3), nn.BatchNorm1d(3, affine=False))
    reestimate_batch_norm(net, [torch.ones(4, 3) * torch.arange(4.0)[:, None]])
    torch.testing.assert_close(net[1].running_mean, torch.full((3,), 1.5))


def test_norms_without_statistics_are_left_alone() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.LayerNorm(3))
    assert reestimate_batch_norm(net, [torch.randn(4, 3)]) == 1
    assert net[0].running_mean is None


def test_no_data() -> None:
    with pytest.raises(UsageError, match="at least one batch"):
        reestimate_batch_norm(nn.BatchNorm1d(3), [])
