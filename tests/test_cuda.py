"""What must hold on a CUDA GPU; skipped where torch sees none. Tests of devices that need no GPU
are in capture/test_devices.py.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

import nestify
from nestify.support.closeness import relative_error
from nestify.targets import load_target
from nestify.training import METHODS, step
from tests.laws.equalities import check_laws
from tests.nested.test_training import IMAGES, NETS, build, classes
from tests.patterns.test_patterns import PATTERNS, nested_of, noted

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")

DOUBLE = 1e-7  # kernels add up in another order than those of a CPU, norms of weights in float32
every_net = pytest.mark.parametrize("name", [n for n in NETS if n != "multi-head attention"])


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Convolutions by one algorithm, in full precision."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False
    yield
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = before


def there(value: Any) -> Any:
    """Tensors, and copies of models, on the GPU."""
    return pytree.tree_map_only(torch.Tensor | nn.Module, lambda v: copy.deepcopy(v).cuda(), value)


def back(value: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, lambda t: t.cpu(), value)


# --- every pattern --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in PATTERNS if name != "Inverse"])  # singular
def test_moved_networks_compute_what_they_did(name: str) -> None:
    """Captured on the CPU and moved: nested and extracted, another batch size."""
    pattern = PATTERNS[name]
    nested, inputs = nested_of(pattern, torch.float64), pattern.example(3, torch.float64)
    subnet = nested.space.sample(torch.Generator().manual_seed(0))
    slim, moved = nested.extract(subnet), there(nested)
    with torch.no_grad(), nested.activate(subnet), moved.activate(subnet):
        reference = nested(*inputs)
        assert relative_error(reference, back(moved(*there(inputs)))) <= DOUBLE
        assert relative_error(reference, back(there(slim)(*there(inputs)))) <= DOUBLE
        assert relative_error(reference, back(moved.extract(subnet)(*there(inputs)))) <= DOUBLE


@pytest.mark.parametrize("name", PATTERNS)
def test_laws_hold_where_the_model_was_captured_on_the_gpu(name: str) -> None:
    pattern = PATTERNS[name]
    with noted(pattern):
        check_laws(
            pattern.build(torch.float64).cuda(),
            there(pattern.example(2, torch.float64)),
            subnets=2,
            other=there(pattern.example(3, torch.float64)),
        )


# --- training -------------------------------------------------------------------------------------


@every_net
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_step_gives_the_gradients_of_the_cpu(name: str, layout: torch.memory_format) -> None:
    nested, x = build(name)
    nested, x = nested.double(), x.double()
    moved, image = there(nested), there(x)
    if x.ndim == 4:
        moved, image = moved.to(memory_format=layout), image.contiguous(memory_format=layout)
    for _ in range(3):  # the same draws on both
        for net, batch in ((nested, x), (moved, image)):
            net.zero_grad()
            net(batch).square().mean().backward()
        assert nested.drawn == moved.drawn
        for key, mine in moved.named_parameters():
            grad = nested.get_parameter(key).grad
            torch.testing.assert_close(mine.grad.cpu(), grad, rtol=1e-7, atol=1e-10, msg=key)
    for key, buffer in moved.named_buffers():
        torch.testing.assert_close(buffer.cpu(), nested.get_buffer(key), msg=key)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_mixed_precision_learns(method: str, dtype: torch.dtype) -> None:
    nested, x, y = there(classes("block"))
    optimizer = torch.optim.Adam(nested.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
    losses: list[float] = []
    for _ in range(60):
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype):
            step(nested, x, y, F.cross_entropy, method, scaler=scaler)
        scaler.step(optimizer)
        scaler.update()
        with nested.activate(nested.space.at(0.5)), torch.no_grad():
            losses.append(F.cross_entropy(nested(x), y).item())
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@every_net
def test_autocast_on_the_gpu_is_that_of_the_extracted_network(
    name: str, dtype: torch.dtype
) -> None:
    nested, x = there(build(name))
    nested.eval()
    subnet = nested.space.sample(torch.Generator().manual_seed(1))
    slim = nested.extract(subnet)
    with torch.no_grad(), nested.activate(subnet), torch.autocast("cuda", dtype):
        assert relative_error(slim(x), nested(x)) <= 2e-2


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # torch's own
def test_masks_compile_once() -> None:
    nested, x, y = there(classes("block"))
    counted = torch._dynamo.testing.CompileCounterWithBackend("inductor")
    compiled = torch.compile(nested.masked(), backend=counted)
    for _ in range(3):
        nested.zero_grad()
        F.cross_entropy(compiled(x), y).backward()
        mine = [p.grad.clone() for p in nested.parameters()]
        with nested.activate(nested.drawn):
            nested.zero_grad()
            F.cross_entropy(nested(x), y).backward()
        for a, b in zip(mine, nested.parameters(), strict=True):
            torch.testing.assert_close(a, b.grad, rtol=1e-3, atol=1e-4)
    assert counted.frame_count <= 2


def test_a_checkpoint_of_the_gpu_goes_on_elsewhere() -> None:
    nested, x, y = there(classes("block"))
    for _ in range(2):
        step(nested, x, y, F.cross_entropy)
    twin, _, _ = classes("block")
    twin.load_state_dict(nested.state_dict())
    assert [twin.draw() for _ in range(4)] == [nested.draw() for _ in range(4)]


# --- what comes after -----------------------------------------------------------------------------


def correct(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    x, y = batch
    return (model(x).argmax(1) == y).float()


def test_loaders_give_batches_on_the_cpu() -> None:
    nested, x = there(build("block"))
    nested.eval()
    subnet = nested.space.at(0.5)
    nested.calibrate(subnet, [x])
    with torch.no_grad(), nested.activate(subnet):
        expected = nested(x)
        nested.calibrate(subnet, [x.cpu()])
        assert torch.equal(nested(x), expected)
        slim = nested.extract(subnet, calibrate=[(x.cpu(), None)])
        torch.testing.assert_close(slim(x), expected)


def test_a_moved_network_goes_back_into_its_class() -> None:
    moved = there(build("block")[0])
    slim = moved.eval().extract(moved.space.at(0.5), as_original_class=True)
    assert type(slim).__name__ == "Block" and all(p.is_cuda for p in slim.parameters())


@pytest.mark.parametrize("reuse_bytes", [0, 1 << 24])
def test_a_search_scores_as_the_extracted_networks_do(reuse_bytes: int, tmp_path: Path) -> None:
    nested, x, y = there(classes("block"))
    plan = nestify.search(
        nested.eval(),
        correct,
        batches=[(x, y)],
        calibrate=[x],
        method="fn3",
        target="cuda",
        max_evaluations=12,
        reuse_bytes=reuse_bytes,
        storage=tmp_path / "search.db",
    )
    assert len(plan.points) >= 4
    for point in plan.points:
        slim = nested.extract(point.subnet, calibrate=[x])
        assert point.score == pytest.approx(correct(slim, (x, y)).mean().item())


def test_reuse_gives_the_same_bits() -> None:
    nested, x = there(build("block"))
    nested.eval()
    subnets = [nested.space.sample(torch.Generator().manual_seed(seed)) for seed in range(4)]

    def outputs() -> list[torch.Tensor]:
        found = []
        for subnet in subnets:
            nested.calibrate(subnet, [x])
            with nested.activate(subnet), torch.no_grad():
                found.append(nested(x))
        return found

    plain = outputs()
    with nested.reusing():
        for _ in range(2):
            assert all(map(torch.equal, plain, outputs()))


@pytest.mark.parametrize(
    "recipe",
    [
        "root-4{init=extract,embed=insert}",
        "root-4{init=project,embed=insert}",
        "root-4{init=project,embed=insert,sizes=free}",
        *(f"rank{{by={by}}}" for by in ("magnitude", "activation", "taylor", "hessian")),
    ],
)
def test_rewrites_on_the_gpu_are_those_of_the_cpu(recipe: str) -> None:
    torch.manual_seed(0)
    convs = [nn.Conv2d(*sizes, 3, padding=1) for sizes in ((3, 8), (8, 16), (16, 8))]
    layers = [
        part for conv in convs for part in (conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU())
    ]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 16, 5)).double().eval()
    x = torch.randn(IMAGES).double()
    labels = torch.arange(len(x)) % 5
    nets = [
        nestify.transform(net, recipe, (batch,), calibration=[(x, labels)]).eval()
        for net, batch in ((model, x), (there(model), x.cuda()))
    ]
    with torch.no_grad():
        assert relative_error(nets[0](x), nets[1](x.cuda()).cpu()) <= DOUBLE


def test_latency_is_measured_on_the_device_that_the_target_names() -> None:
    seen: set[str] = set()

    class Tells(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.add(x.device.type)
            return x.relu()

    for target in ("cpu", "cuda"):
        for device in ("cpu", "cuda"):
            seen.clear()
            assert load_target(target).measure(Tells(), (torch.ones(2, device=device),), None) > 0
            assert seen == {target}


def test_costs_of_a_moved_network_are_timed_on_either_device() -> None:
    nested, _ = build("block")
    for net in (nested, there(nested)):
        for target in ("cpu", "cuda"):
            assert net.estimate([net.space.smallest()], target=target).latency_ms[0] > 0


def test_export_moves_a_copy_to_the_cpu(tmp_path: Path) -> None:
    model = there(nested_of(PATTERNS["Constants"], torch.float32))
    inputs = there(PATTERNS["Constants"].example(2, torch.float32))
    slim = model.extract(model.space.smallest())
    for suffix in (".onnx", ".pt2", ""):
        path = tmp_path / f"slim{suffix}"
        assert nestify.export(slim, path, example_inputs=inputs).error <= 1e-5
    assert all(p.is_cuda for p in slim.parameters())
