"""Complex numbers and Fourier transforms."""

from __future__ import annotations

from collections.abc import Sequence

from nestify.dims import Const
from nestify.rules.call import Call
from nestify.rules.op import Op, Rule, rows

__all__ = ["SPECTRA"]


def _view_as_real(call: Call) -> None:
    call.out = (*call.need("self"), Const(2))


def _view_as_complex(call: Call) -> None:
    *dims, pair = call.need("self")
    call.fix(pair, "is the real and the imaginary part", "named")
    call.out = tuple(dims)


def _mixed(call: Call, at: Sequence[int], why: str) -> None:
    """Fix the dims at ``at``, of whatever size they come out; all others pass."""
    dims, shape = call.need("self"), call.out_shape
    for d in at:
        call.fix(dims[d], why)
    call.out = tuple(call.constant(n, why) if d in at else dims[d] for d, n in enumerate(shape))


def _transform(call: Call) -> None:
    rank = len(call.need("self"))
    named = call.args["dim"]
    if named is None:
        sizes = call.args.get("s")
        named = range(rank) if sizes is None else range(rank - len(sizes), rank)
    at = [d % rank for d in (named if isinstance(named, list | tuple | range) else [named])]
    _mixed(call, at, f"{call.op} mixes all positions of this dim")


def _stft(call: Call) -> None:
    """A signal as windows of frequencies, or back; a batch may lead."""
    dims = call.need("self")
    lead = len(dims) - (2 if call.op == "istft" else 1)
    for expr in (*dims[lead:], *(call.dims("window") or ())):
        call.fix(expr, f"{call.op} slides a window over this dim")
    call.out = (*dims[:lead], *(Const(n) for n in call.out_shape[lead:]))


SPECTRA: dict[str, Rule | Op] = {
    "view_as_real": _view_as_real,
    "view_as_complex": Op(_view_as_complex, pairs=True),
    **{
        f"fft_{kind}{rank}": _transform
        for kind in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft")
        for rank in ("", "2", "n")
    },
    **rows("fft_fftshift fft_ifftshift", _transform),
    **rows("stft istft", _stft),
}
