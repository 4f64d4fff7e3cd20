"""Samples of the ops that rearrange, cut, join, repeat, make and index, and of recurrent nets."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from tests.laws.harness import Samples

SHAPES = Samples()
add = SHAPES.add
aten = torch.ops.aten

# --- views ----------------------------------------------------------------------------------------

add("view", lambda x: x.view(2, 3, 4), "6* 4*")
add("view:join", lambda x: x.view(-1, 5), "2* 3* 5*")
add("view:across", lambda x: x.view(4, 6), "6 4")
add("view:nested", lambda x: x.view(2, 12), "4* 6*")
add("view:ones", lambda x: x.view(1, 6, 1, 4), "6* 4*")
add("view:heads", lambda x: x.view(x.shape[0], 5, 3, 2, 4), "B 5 24")
add("view:qkv", lambda x, w: (x @ w).view(-1, 5, 3, 2, 4).permute(2, 0, 3, 1, 4), "B 5 6, 6 24*")
add("view:cat", lambda x, y: torch.cat([x, y], 1).view(2, 3, 4), "2* 4*, 2* 8*")
add("view:mixed", lambda x, y: torch.cat([x, y], 1).view(2, 2, 6), "2* 5*, 2* 7*")
add("view:batch", lambda x, w: (x * w).view(-1, 4), "B 3 4, 3 4")
add("reshape", lambda x: x.transpose(0, 1).reshape(3, 8), "2* 3* 4*")
add(
    "reshape:window", lambda x: x.reshape(2, 2, 2, 3, 2, 5).permute(0, 1, 3, 2, 4, 5), "2* 4* 6* 5*"
)
add("_unsafe_view", lambda x: aten._unsafe_view(x, [2, 3, 4]), "6* 4*")
add("view_as", lambda x, y: x.view_as(y), "6* 4*, 2* 3* 4*")
add("reshape_as", lambda x, y: x.reshape_as(y), "6* 4*, 2* 3* 4*")
add("flatten", lambda x: x.flatten(1), "2* 3* 4*")
add("flatten:middle", lambda x: x.flatten(1, -2), "B 3 4 2")
add("unflatten", lambda x: x.unflatten(1, (2, 3)), "2* 6* 4*")
add("unflatten:rest", lambda x: x.unflatten(-1, (2, -1)), "2* 6*")
add("permute", lambda x: x.permute(2, 0, -2), "2* 3* 4*")
for _name in ("transpose", "swapaxes", "swapdims"):
    add(_name, lambda x, n=_name: getattr(aten, n)(x, 0, -1), "2* 3* 4*")
add("t", lambda x: aten.t(x), "2* 3*")
add("numpy_T", lambda x: aten.numpy_T(x), "2* 3*")
for _name in ("mT", "adjoint", "matrix_H"):
    add(_name, lambda x, n=_name: getattr(aten, n)(x), "3* 4*")
add("mT:batch", lambda x: x.mT, "2* 3* 4*")
add("ravel", lambda x: x.ravel(), "2* 3* 4*")
add("moveaxis", lambda x: x.moveaxis(-1, 0), "2* 3* 4*")
add("movedim", lambda x: aten.movedim(x, 0, -1), "3* 3* 4*")
add("movedim:two", lambda x: aten.movedim(x, [0, 1], [2, 0]), "3* 2* 4*")
add("movedim:same", lambda x, y: aten.movedim(x @ x.t() + y, 0, 1), "3* 4*, 3* 3*")
add("squeeze", lambda x: x.squeeze(1), "2* 1 3*")
add("squeeze:all", lambda x: x.squeeze(), "2* 1 3*")
add("squeeze:some", lambda x: x.squeeze((0, 1)), "2* 1 3*")
add("squeeze:inplace", lambda x: x.clone().squeeze_(1), "2* 1 3*")
add("squeeze:dims", lambda x: x.squeeze((0, 2)), "1 3* 1")
add("unsqueeze", lambda x: x.unsqueeze(-1), "2* 3*")
add("unsqueeze:front", lambda x: x.unsqueeze(0), "2* 3*")

# --- joins and cuts -------------------------------------------------------------------------------

add("cat", lambda x, y: torch.cat([x, y], 1), "2* 3*, 2* 4*")
add("cat:three", lambda x, y, z: torch.cat([x, y, x, z], -1), "2* 3*, 2* 4*, 2* 1")
add("cat:batch", lambda x, y: torch.cat([x * y, y * x], 0), "B 4, 4")
add("concat", lambda x, y: torch.concat([x, y], -1), "2* 3*, 2* 4*")
add("concatenate", lambda x, y: torch.concatenate([x, y]), "3* 2*, 4* 2*")
add("hstack", lambda x, y: torch.hstack([x, y]), "2* 3*, 2* 4*")
add("hstack:vectors", lambda x, y: torch.hstack([x, y]), "3*, 4*")
add("vstack", lambda x, y: torch.vstack([x, y]), "3* 2*, 4* 2*")
add("row_stack", lambda x, y: aten.row_stack([x, y]), "3* 2*, 4* 2*")
add("column_stack", lambda x, y: torch.column_stack([x, y]), "3*, 3* 2*")
add("dstack", lambda x, y: torch.dstack([x, y]), "2* 3*, 2* 3* 4*")
add("dstack:vector", lambda x, y: torch.dstack([x, y]), "3*, 3*")
add("atleast_1d", lambda x: torch.atleast_1d(x), "3*")
add("atleast_2d", lambda x: torch.atleast_2d(x), "3*")
add("atleast_3d", lambda x: torch.atleast_3d(x), "3* 4*")
add("atleast_3d:vector", lambda x: torch.atleast_3d(x), "3*")
add("vstack:vectors", lambda x, y: torch.vstack([x, y]), "2*, 3* 2*")
add("stack", lambda x, y: torch.stack([x, y], 1), "2* 3*, 2* 3*")
add("split_with_sizes", lambda x: x.split([1, 2, 3], 1), "2* 6*")
add("split", lambda x: x.split(4, -1), "2* 10*")
add("split:cat", lambda x, y: torch.cat([x, y], 1).split(4, 1), "2* 3*, 2* 7*")
add("chunk", lambda x: x.chunk(3, 1), "2* 6*")
add("chunk:gate", lambda x, w: (lambda a, b: a * b)(*F.linear(x, w).chunk(2, -1)), "B 4, 6* 4")
add("tensor_split", lambda x: x.tensor_split((1, 4), 1), "2* 6*")
add("hsplit", lambda x: torch.hsplit(x, 2), "2* 6*")
add("hsplit:vector", lambda x: torch.hsplit(x, [2, 3]), "6*")
add("vsplit", lambda x: torch.vsplit(x, [1, 4]), "6* 2*")
add("dsplit", lambda x: torch.dsplit(x, 2), "2* 3* 6*")
add("unsafe_chunk", lambda x: torch.unsafe_chunk(x, 2, 1), "2* 6*")
add("unsafe_split", lambda x: torch.unsafe_split(x, 4, 1), "2* 6*")
add("unbind", lambda x: x.unbind(1), "2* 3 4*")
add("getitem", lambda x: x.unbind(1)[2], "2* 3 4*")
add("slice", lambda x: x[:, 1:4], "2* 6*")
add("slice:end", lambda x: x[:, :4], "2* 6*")
add("slice:start", lambda x: x[:, 2:], "2* 6*")
add("slice:negative", lambda x: x[:, -4:-1], "2* 6*")
add("slice:past", lambda x: x[:, 2:99], "2* 6*")
add("slice:cat", lambda x, y: torch.cat([x, y], 1)[:, 2:5], "2* 4*, 2* 5*")
add("slice:product", lambda x: x.flatten(1)[:, 4:12], "2* 4* 4*")
add("slice:inside", lambda x: x.flatten(1)[:, 2:12], "2* 4* 4*")
add("slice:step", lambda x: x[:, ::2], "2* 6*")
add("slice:odd", lambda x: x[:, 1::2], "2* 6*")
add("slice:uneven", lambda x: x[:, 1::4], "2* 6")
add("slice:batch", lambda x, y: x[:, 1:3] * y, "B 4, 2")
add("narrow", lambda x: x.narrow(1, 1, 3), "2* 6*")
add("narrow:last", lambda x: x.narrow(-1, -3, 2), "2* 6*")
add("narrow:cat", lambda x, y: torch.cat([x, y], 1).narrow(1, 2, 4), "2* 4*, 2* 5*")
add("select", lambda x: x[:, 2], "2* 6*")
add("select:first", lambda x: x[:, 0], "2* 6* 3*")
add("select:last", lambda x: x[:, -1], "2* 6*")
add("select:cat", lambda x, y: torch.cat([x, y], 1)[:, 0], "2* 1 3*, 2* 5* 3*")
add("glu", lambda x: F.glu(x, 1), "2* 6* 3*")

# --- repeats and new tensors ----------------------------------------------------------------------

add("expand", lambda x: x.expand(5, 3, -1), "3* 4*")
add("expand:stretch", lambda x: x.expand(2, 5, 4), "1 4*")
add("expand:batch", lambda x, y: torch.cat([y.expand(x.shape[0], -1), x], 1), "B 4, 1 2*")
add("expand_as", lambda x, y: x.expand_as(y), "1 4*, 3* 4*")
add("broadcast_tensors", lambda x, y: torch.broadcast_tensors(x, y), "3* 4*, 4*")
add("broadcast_to", lambda x: aten.broadcast_to(x, [2, 3, 4]), "3* 1")
add("repeat", lambda x: x.repeat(2, 3, 1), "1 4*")
add("repeat:front", lambda x: x.repeat(5, 1, 2), "3* 4*")
add("repeat:batch", lambda x, y: x + y.repeat(x.shape[0], 1), "B 4, 1 4")
add("tile", lambda x: x.tile(5, 1, 2), "3* 4*")
add("repeat_interleave", lambda x: x.repeat_interleave(3, 1), "2* 4*")
add(
    "repeat_interleave:sized",
    lambda x: x.repeat_interleave(3, 1, output_size=12),
    "2* 4*",
)
for _name in ("zeros", "ones", "rand", "randn", "empty"):
    add(_name, lambda x, n=_name: getattr(torch, n)(2, 3) + x, "3*", values=_name[0] in "zo")
for _name in ("new_zeros", "new_ones", "new_empty"):
    add(_name, lambda x, n=_name: x + getattr(aten, n)(x, [2, 3]), "3*", values=_name[-1] == "s")
add("full", lambda x: torch.full((2, 3), 7.0) + x, "3*")
add("new_full", lambda x: x.new_full((2, 3), 7.0) + x, "3*")
add("zeros:batch", lambda x, y: torch.cat([x, torch.zeros(x.shape[0], 4) * y], 1), "B 4, 4*")
add("arange", lambda x: x + torch.arange(3), "2* 3")
add("arange:steps", lambda x: x + torch.arange(0, 9, 3), "2* 3")
add("arange:start", lambda x: x + torch.arange(1, 4), "2* 3")
add("linspace", lambda x: x + torch.linspace(0, 1, 3), "2* 3")
add("eye", lambda x: x + torch.eye(3), "2* 3 3")
add("tril_indices", lambda x: x + torch.tril_indices(2, 2), "2 3")
add("triu_indices", lambda x: x + torch.triu_indices(2, 2), "2 3")
for _name in ("hann", "hamming", "blackman", "bartlett", "kaiser"):
    add(f"{_name}_window", lambda x, n=_name: x + getattr(torch, f"{n}_window")(3), "2* 3")
add("logspace", lambda x: x + torch.logspace(0, 1, 3), "2* 3")
add("fft_fftfreq", lambda x: x + torch.fft.fftfreq(3), "2* 3")
add("fft_rfftfreq", lambda x: x + torch.fft.rfftfreq(4), "2* 3")
add("randperm", lambda x: x + torch.randperm(3), "2* 3", values=False)
add("randint", lambda x: x + torch.randint(5, (2, 3)), "3*", values=False)
add("cartesian_prod", torch.cartesian_prod, "2, 3")
add("scalar_tensor", lambda x: x + aten.scalar_tensor(2.0), "2* 3*")
add("meshgrid", lambda x, y: torch.meshgrid(x, y, indexing="ij"), "3, 4")
add("histc", lambda x: torch.histc(x, 5), "3 4")

# --- indexing and padding -------------------------------------------------------------------------

add("index", lambda x, i: x[:, i], "2* 5 3*, i5: 4*")
add("index:two", lambda x, i, j: x[:, i, j], "2* 5 4 3*, i5: 3* 1, i4: 2*")
add("index:apart", lambda x, i, j: x[i, :, j], "5 2* 4, i5: 3*, i4: 3*")
add("index:flat", lambda x, i: x[i].view(2, 3, 4), "5 4*, i5: 6*")
add("index_put", lambda x, i, v: aten.index_put(x, [None, i], v), "2* 5 3*, i5: 2, 2* 2 3*")
add("index_put:inplace", lambda x, i, v: aten.index_put_(x.clone(), [i], v), "5 3*, i5: 2, 3*")
add("index_select", lambda x, i: x.index_select(1, i), "2* 5 3*, i5: 4*")
add("gather", lambda x, i: x.gather(1, i), "2* 5, i5: 2* 3")
add("gather:part", lambda x, i: x.gather(0, i), "5 4, i5: 3 2")
add("pad", lambda x: F.pad(x, (1, 2)), "2* 3*")
add("pad:two", lambda x: F.pad(x, (1, 0, 0, 2), value=3.0), "2* 3* 4*")
add("pad:crop", lambda x: F.pad(x, (-1, 1)), "2* 4")
add("pad:reflect", lambda x: F.pad(x, (1, 1), mode="reflect"), "2* 4")
add("pad:replicate", lambda x: F.pad(x, (1, 1, 0, 0), mode="replicate"), "2* 3* 4")
add("constant_pad_nd", lambda x: aten.constant_pad_nd(x, [1, 2], 0.5), "2* 3*")
add("roll", lambda x: x.roll(1, 1), "2* 3 4*")
add("roll:flat", lambda x: x.roll(1), "2 3")
add("fliplr", torch.fliplr, "2* 3 4*")
add("flipud", torch.flipud, "2 3*")
add("rot90", lambda x: x.rot90(1, (0, 2)), "2 3* 4")
add("as_strided", lambda x: x.as_strided((2, 2), (3, 1)), "2 3")
add("flip", lambda x: x.flip(-1), "2* 3")

# --- recurrent nets -------------------------------------------------------------------------------


def _lstm(x: torch.Tensor, h: torch.Tensor, *params: torch.Tensor) -> Any:
    return aten.lstm(x, [h, h], list(params), True, 1, 0.0, False, False, True)


def _deep(x: torch.Tensor, h: torch.Tensor, *params: torch.Tensor) -> Any:
    return aten.lstm(x, [h, h], list(params), False, 2, 0.0, False, True, True)


def _gru(x: torch.Tensor, h: torch.Tensor, *params: torch.Tensor) -> Any:
    return aten.gru(x, h, list(params), True, 1, 0.0, False, False, False)


_RNN = "16* 3*, 16* 4*, 16*, 16*"
_PAIR = ", ".join(["12* 5*, 12* 3*"] * 2 + ["12* 6*, 12* 3*"] * 2)
add("lstm", _lstm, f"5* 4 3*, 1 5* 4*, {_RNN}", macs=20 * 16 * 7)
add("lstm:deep", _deep, f"2* 4 5*, 4 2* 3*, {_PAIR}", macs=8 * 2 * 12 * (8 + 9))
add(
    "lstm:batch",
    lambda x, *p: _lstm(x, torch.zeros(1, len(x), 4), *p),
    f"B 4 3, {_RNN.replace('3*', '3')}",
    macs=12 * 16 * 7,
)
add("gru", _gru, "4 5* 3*, 1 5* 2*, 6* 3*, 6* 2*, 6*, 6*", macs=20 * 6 * 5)


def _projected(x: torch.Tensor, h: torch.Tensor, c: torch.Tensor, *params: torch.Tensor) -> Any:
    return aten.lstm(x, [h, c], list(params), True, 1, 0.0, False, False, True)


def _projected_deep(
    x: torch.Tensor, h: torch.Tensor, c: torch.Tensor, *params: torch.Tensor
) -> Any:
    return aten.lstm(x, [h, c], list(params), False, 2, 0.0, False, True, False)


_FIRST, _SECOND = "20* 3*, 20* 2*, 2* 5*", "20* 4*, 20* 2*, 2* 5*"
add(
    "lstm:projected",
    _projected,
    "4* 6 3*, 1 4* 2*, 1 4* 5*, 20* 3*, 20* 2*, 20*, 20*, 2* 5*",
    macs=24 * (20 * 5 + 10),
)
add(
    "lstm:projected_deep",
    _projected_deep,
    f"6 4* 3*, 4 4* 2*, 4 4* 5*, {_FIRST}, {_FIRST}, {_SECOND}, {_SECOND}",
    macs=24 * 2 * (20 * 5 + 10 + 20 * 6 + 10),
)
for _name in ("rnn_tanh", "rnn_relu"):
    add(
        _name,
        lambda x, h, *p, n=_name: getattr(aten, n)(x, h, list(p), True, 1, 0.0, False, False, True),
        "5* 6 3*, 1 5* 4*, 4* 3*, 4* 4*, 4*, 4*",
        macs=30 * 4 * 7,
    )
for _name, _gates in (("gru_cell", 3), ("rnn_tanh_cell", 1), ("rnn_relu_cell", 1)):
    _rows = 4 * _gates
    add(
        _name,
        lambda *p, n=_name: getattr(aten, n)(*p),
        f"5* 3*, 5* 4*, {_rows}* 3*, {_rows}* 4*, {_rows}*, {_rows}*",
        macs=5 * _rows * 7,
    )
add(
    "lstm_cell",
    lambda x, h, c, *p: aten.lstm_cell(x, [h, c], *p),
    "5* 3*, 5* 4*, 5* 4*, 16* 3*, 16* 4*",
    macs=5 * 16 * 7,
)
