"""What is asked of a generated model: every form of every subnet computes the same.

In float64: the largest subnet is the original, bit for bit, at two batch sizes and in both modes;
nested and extracted agree under random prefixes and random kept positions; what is extracted equals
the original with the removed positions silenced. onnxruntime is asked in ``bundles``.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from nestify.compiler import transform
from nestify.dims import dims_of
from nestify.errors import CaptureError, NestifyWarning, UsageError, VerificationError
from nestify.graph.graph import Graph
from nestify.nested.model import NestedModel
from nestify.support.closeness import relative_error
from tests.fuzz.build import build, example_inputs, model_of
from tests.fuzz.doubt import called, sensitivity, sensitivity_of_calls
from tests.fuzz.forms import Form
from tests.fuzz.oracle import flat_inputs, silenced
from tests.fuzz.prelude import double_precision
from tests.fuzz.spec import Spec
from tests.fuzz.training_step import apart, trained

__all__ = ["EVERYTHING", "Case", "Failure", "check", "check_model", "elastic_calls"]

Inputs = tuple[torch.Tensor, ...]
EVERYTHING = "fn3-channel{where=all}+fn3-neuron{where=all}+fn3-head+fn3-path+fn3-layer"
TOLERANCE = 1e-10
# How ops refuse the values of a subnet, where a smaller net leaves their domain.
_OUT_OF_DOMAIN = (
    "infs or NaNs",
    "positive-definite",
    "failed to converge",
    "singular",
    "NaN or inf",
    "invalid Poisson rate",
)
_TINY = 1e-14  # a few units in the last place


@dataclass(frozen=True, slots=True)
class Failure:
    """A law that a model breaks: which, by how much, and under which choice of positions."""

    law: str
    message: str
    error: float = math.inf


@dataclass
class Case:
    """One checked model: how it ended, what it called, and an extracted subnet for onnxruntime.

    ``outcome`` is ``checked``, or why there was nothing to check.
    """

    outcome: str
    calls: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    elastic: set[str] = field(default_factory=set)
    groups: int = 0
    failure: Failure | None = None
    comparisons: int = 0
    slim: fx.GraphModule | None = None
    inputs: Inputs = ()
    other: Inputs = ()


def check(spec: Spec, forms: Mapping[str, Form], *, subnets: int = 2) -> Case:
    """Check one model; a failure is part of the result, not an exception."""
    builder = build(spec, forms)
    batches = example_inputs(builder), example_inputs(builder, 3)
    return check_model(model_of(builder, spec), *batches, seed=spec.values, subnets=subnets)


def check_model(
    model: nn.Module, inputs: Inputs, other: Inputs, *, seed: int, subnets: int = 2
) -> Case:
    """Check a model in float64 on inputs of two batch sizes."""
    with double_precision(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _Check(model.eval(), inputs, other, seed, subnets).run()


class _Check:
    def __init__(
        self, model: nn.Module, inputs: Inputs, other: Inputs, seed: int, subnets: int
    ) -> None:
        self.model, self.subnets = model, subnets
        self.inputs, self.other = inputs, other
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.case = Case("checked", inputs=inputs, other=other)
        self.notes: list[str] = []  # what training does that the nested model does not

    def run(self) -> Case:
        case = self.case
        try:
            with warnings.catch_warnings(record=True) as notes:
                warnings.simplefilter("ignore")
                warnings.simplefilter("always", NestifyWarning)
                nested = transform(self.model, EVERYTHING, self.inputs)
            self.notes = [str(note.message) for note in notes]
        except UsageError as error:
            if "finds nothing to choose" not in str(error):
                return self.fail(Failure("transform", str(error)))
            case.outcome = "nothing is elastic"
            return case
        except CaptureError as error:
            case.outcome = f"torch.export: {error}"
            return case
        except Exception as error:
            return self.fail(_crash("transform", error))
        nested.eval()
        graph: Graph = nested.graph
        case.groups = len(graph.groups)
        case.calls = [
            (call.op, tuple(graph.calls[n].op for n in call.tensors() if n in graph.calls))
            for call in graph.calls.values()
        ]
        case.elastic = set(elastic_calls(graph))
        laws = self.original, self.refusal, self.step, self.training, self.prefixes, self.positions
        for law in laws:
            try:
                failure = law(nested)
            except Exception as error:
                failure = _crash(law.__name__, error)
            if failure is not None:
                if any(text in failure.message for text in _OUT_OF_DOMAIN):
                    case.outcome = f"outside the domain of an op: {failure.message}"
                    return case
                if failure.error <= 1e3 * self.unsteadiness(nested, failure.law):
                    case.outcome = "rounding alone moves it more"
                    return case
                return self.fail(failure)
        return case

    def fail(self, failure: Failure) -> Case:
        self.case.outcome, self.case.failure = "failed", failure
        return self.case

    def unsteadiness(self, nested: NestedModel, law: str) -> float:
        """How far rounding moves the outputs of the model, relative to these."""
        run = _trained if law in ("training", "step") else called
        moved = sensitivity(self.model, self.inputs, _TINY, run)
        whole = nested.extract(nested.space.largest(), verify=False)
        try:
            apart = sensitivity_of_calls(whole, self.inputs, _TINY)
        except RuntimeError:  # what is moved leaves the domain of an op, as a probability of one
            return moved
        return max(moved, apart if math.isfinite(apart) else 0.0)

    # --- laws -------------------------------------------------------------------------------------

    def batches(self, nested: NestedModel) -> Iterator[Inputs]:
        """The inputs that nested must serve: a second batch size where it and the model can."""
        yield self.inputs
        if nested.graph.batch is None:
            return
        try:
            with torch.no_grad():
                self.model(*self.other)
        except (RuntimeError, IndexError, ValueError):
            return  # the model's own code has the batch size in it
        yield self.other

    def compared(self, law: str, a: Any, b: Any, limit: float, under: object) -> Failure | None:
        self.case.comparisons += 1
        error = relative_error(a, b)
        if error <= limit:
            return None
        error = min(error, relative_error(b, a))  # of what is zero all rounding is large
        return Failure(law, f"differs by {error:.1e} relative under {under}", error)

    def original(self, nested: NestedModel) -> Failure | None:
        """The largest subnet is the original, bit for bit."""
        for inputs in self.batches(nested):
            # Gradients on: without them nn.MultiheadAttention takes a fused path of its own.
            found = self.compared("original", self.model(*inputs), nested(*inputs), 0.0, "all")
            if found:
                return found
        return None

    def refusal(self, nested: NestedModel) -> Failure | None:
        """Where the batch is not free, another one is refused with a reason, extracted too."""
        if nested.graph.batch is not None or not nested.graph.capture.leading:
            return None
        if not nested.graph.batch_reason:
            return Failure("reason", "the batch is fixed for no reason")
        slim = nested.extract(nested.space.largest(), verify=False)
        for network, kind in ((nested, UsageError), (slim, AssertionError)):
            try:
                network(*self.other)
            except kind:
                self.case.comparisons += 1
                continue
            return Failure("refusal", f"{type(network).__name__} takes another batch")
        return None

    def step(self, nested: NestedModel) -> Failure | None:
        """A training step of the largest subnet is the original's, or a warning says what is
        not.
        """
        try:
            expected = trained(self.model, self.inputs, {})
        except (ValueError, RuntimeError):
            return None  # a batch norm that sees one value a channel; no derivative
        with nested.activate(nested.space.largest()):
            found = trained(nested, self.inputs, {})
        self.case.comparisons += 1
        where, error = apart(expected, found)
        if self.notes:
            spurious = "in training" in " ".join(self.notes) and error == 0.0
            return Failure("warning", f"for nothing: {self.notes[0]}") if spurious else None
        if error <= TOLERANCE:
            return None
        return Failure("step", f"{where} differ by {error:.1e} relative", error)

    def training(self, nested: NestedModel) -> Failure | None:
        """In training the largest subnet is the original too, and each subnet what is extracted."""
        subnet = nested.space.sample(self.generator)
        results: list[Any] = []
        state = {name: tensor.clone() for name, tensor in nested.state_dict().items()}
        slim = nested.extract(subnet, verify=False)
        try:
            results.append(_trained(self.model, self.inputs))
        except ValueError:
            return None  # a batch norm that sees one value a channel
        with nested.activate(nested.space.largest()):
            results.append(_trained(nested, self.inputs))
        nested.load_state_dict(state)
        with nested.activate(subnet):
            results += [_trained(nested, self.inputs), _trained(slim, self.inputs)]
        nested.load_state_dict(state)
        found = None
        if not self.notes:
            found = self.compared("training", results[0], results[1], 0.0, "all")
        if found or any(name == "dropout_p" for _, name in nested.graph.capture.mode_args):
            return found  # an extracted net drops no attention weights, as its documentation says
        return self.compared("training", results[2], results[3], TOLERANCE, subnet)

    def prefixes(self, nested: NestedModel) -> Failure | None:
        """Nested and extracted agree under random subnets, and cost what was predicted."""
        for _ in range(self.subnets):
            subnet = nested.space.sample(self.generator)
            slim = nested.extract(subnet, verify=False)
            with nested.activate(subnet), torch.no_grad():
                for inputs in self.batches(nested):
                    found = self.compared(
                        "extracted", nested(*inputs), slim(*inputs), TOLERANCE, subnet
                    )
                    if found:
                        return found
            predicted = nested.estimate([subnet]).row(0).params
            counted = sum(p.numel() for p in slim.parameters())
            if predicted != counted:
                return Failure("parameters", f"{predicted} predicted, {counted} there: {subnet}")
            self.case.slim = slim
        return None

    def positions(self, nested: NestedModel) -> Failure | None:
        """Under random kept positions and blocks the extracted net is the silenced original."""
        graph: Graph = nested.graph
        sizes = {group.name: group.size for group in graph.groups}
        sizes |= {name: len(moves) for name, moves in graph.moves.items() if len(moves) > 1}
        for _ in range(self.subnets):
            picks = {name: self.some(size) for name, size in sizes.items()}
            slim = nested.extract(picks)  # this compares with nested too
            tensors = dict(nested.named_tensors())
            with torch.no_grad():
                expected = silenced(graph, tensors, nested.keep(picks), flat_inputs(self.inputs))
                actual = pytree.tree_leaves(slim(*self.inputs))
            found = self.compared("silenced", expected, actual, TOLERANCE, picks)
            if found:
                return found
        return None

    def some(self, size: int) -> torch.Tensor:
        """At least one of ``size`` positions, in order."""
        return torch.tensor(sorted(self.rng.sample(range(size), self.rng.randint(1, size))))


def elastic_calls(graph: Graph) -> Iterator[str]:
    """Ops that at least one elastic dim reaches."""
    for call in graph.calls.values():
        dims = [graph.dims[source] for source in call.tensors()]
        exprs = [e for e in pytree.tree_leaves(dims) if e is not None]
        if any(not d.batch for e in exprs for d in dims_of(e)):
            yield call.op


def _trained(model: nn.Module, inputs: Sequence[torch.Tensor]) -> Any:
    """The outputs of one training step's forward, under one random state."""
    model.train()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return model(*inputs)
    finally:
        model.eval()


def _crash(where: str, error: Exception) -> Failure:
    lines = str(error).strip().splitlines() or [""]
    apart = error.error if isinstance(error, VerificationError) else math.inf
    return Failure(f"{where} raises {type(error).__name__}", lines[0], apart)
