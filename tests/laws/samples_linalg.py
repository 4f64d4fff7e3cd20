"""Samples of linear algebra, complex numbers, Fourier transforms and losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.laws.harness import Samples
from tests.laws.samples_math import packet

LINALG = Samples()
add = LINALG.add
aten = torch.ops.aten
linalg = torch.linalg

# --- products -------------------------------------------------------------------------------------

add("addmv", torch.addmv, "3*, 3* 4*, 4*", macs=12)
add("addmv:one", torch.addmv, "1, 3* 4*, 4*", macs=12)
add("addr", torch.addr, "3* 4*, 3*, 4*")
add("addr:row", torch.addr, "4*, 3*, 4*")
add("addbmm", torch.addbmm, "3* 5*, 2* 3* 4*, 2* 4* 5*", macs=120)
add("vdot", torch.vdot, "4*, 4*", macs=4)
add("linalg_vecdot", linalg.vecdot, "2* 3* 4*, 3* 4*", macs=24)
add("linalg_vecdot:dim", lambda x, y: linalg.vecdot(x, y, dim=0), "2* 3*, 2* 3*", macs=6)
add("linalg_vecdot:stretched", linalg.vecdot, "2* 3* 4, 3* 1", macs=24)
add("tensordot", lambda x, y: torch.tensordot(x, y, 2), "2* 3* 4*, 3* 4* 5*", macs=120)
add(
    "tensordot:named",
    lambda x, y: torch.tensordot(x, y, ([0, -1], [1, 0])),
    "2* 3* 4*, 4* 2* 5*",
    macs=120,
)
add("tensordot:outer", lambda x, y: torch.tensordot(x, y, 0), "2* 3*, 4*", macs=24)
add("linalg_multi_dot", lambda x, y: linalg.multi_dot([x, y]), "2* 3*, 3* 4*")
add("linalg_multi_dot:vector", lambda x, y: linalg.multi_dot([x, y]), "3*, 3* 4*", macs=12)
add("chain_matmul", lambda x, y: aten.chain_matmul([x, y]), "2* 3*, 3* 4*")
add("linalg_matrix_power", lambda x: linalg.matrix_power(x, 3), "2* 4* 4*")
add("linalg_matrix_power:none", lambda x: linalg.matrix_power(x, 0), "4* 4*")
add("linalg_matrix_power:inverse", lambda x: linalg.matrix_power(x, -2), "2* 4 4")
add("matrix_power", lambda x: torch.matrix_power(x, 2), "4* 4*")
add("trace", torch.trace, "4* 4*")
add("cross", lambda x, y: torch.cross(x, y, -1), "2* 3, 2* 3")
add("linalg_cross", lambda x, y: linalg.cross(x, y, dim=0), "3 4*, 3 4*")
add("kron", torch.kron, "2* 3*, 4* 5*")
add("kron:rank", torch.kron, "3*, 4* 5*")
add("block_diag", torch.block_diag, "2* 3*, 4* 1, 2* 2*")
add("diag_embed", torch.diag_embed, "2* 3*")
add("diag_embed:dims", lambda x: x.diag_embed(dim1=0, dim2=2), "2* 3*")

# --- diagonals ------------------------------------------------------------------------------------

add("diagonal", lambda x: x.diagonal(1, 0, 2), "3 2* 4")
add("diagonal:square", lambda x: x.diagonal(dim1=0, dim2=-1), "3* 2* 3*")
add("diagonal:shifted", lambda x: x.diagonal(1, 0, 2), "3 2* 3")
add("diag", torch.diag, "3* 3*")
add("diag:vector", torch.diag, "3*")
add("fill_diagonal", lambda x: x.clone().fill_diagonal_(0.0), "3* 3*")
add("diagonal_scatter", lambda x, s: x.diagonal_scatter(s, 0, 1, 2), "2* 3* 3*, 2* 3*")

# --- norms and distances --------------------------------------------------------------------------

add("norm", packet("norm"), "3* 4*")
add("norm:dim", lambda x: aten.norm(x, 2, [1]), "3* 4*")
add("frobenius_norm", lambda x: aten.frobenius_norm(x, [0, 1]), "3* 4*")
add("nuclear_norm", packet("nuclear_norm"), "3* 4*")
add("linalg_vector_norm", lambda x: linalg.vector_norm(x, 2, -1, keepdim=True), "3* 4*")
add("linalg_vector_norm:inf", lambda x: linalg.vector_norm(x, float("inf")), "3* 4*")
add("linalg_vector_norm:zero", lambda x: linalg.vector_norm(x, 0, 1), "3* 4*")
add("linalg_vector_norm:low", lambda x: linalg.vector_norm(x, -2, 1), "3* 4")
add("linalg_norm", linalg.norm, "3* 4*")
add("linalg_norm:dim", lambda x: linalg.norm(x, 1, 0, keepdim=True), "3* 4*")
add("linalg_norm:matrix", lambda x: linalg.norm(x, "nuc", (0, 2)), "3* 2* 4*")
add("linalg_norm:low", lambda x: linalg.norm(x, -1, (0, 2)), "3 2* 4")
for _order in ("fro", "nuc", 1, 2, float("inf")):
    add(
        "linalg_matrix_norm" + (f":{_order}" if _order != "fro" else ""),
        lambda x, o=_order: linalg.matrix_norm(x, o),
        "2* 3* 4*",
    )
add("linalg_matrix_norm:low", lambda x: linalg.matrix_norm(x, -2), "2* 3 4")
add("_weight_norm", lambda v, g: torch._weight_norm(v, g, 0), "6* 4* 3*, 6* 1 1")
add("_weight_norm:last", lambda v, g: torch._weight_norm(v, g, 1), "6* 4*, 1 4*")
add("_weight_norm:all", lambda v, g: torch._weight_norm(v, g, -1), "6* 4*, ")
add("renorm", lambda x: x.renorm(2, 1, 0.5), "3* 4* 2*")
add("pairwise_distance", F.pairwise_distance, "3* 4*, 4*")
add("pairwise_distance:keep", lambda x, y: F.pairwise_distance(x, y, 1, 0.1, True), "3* 4*, 3* 4*")
add("cdist", torch.cdist, "2* 3* 4*, 5* 4*")
add("cdist:one", lambda x, y: torch.cdist(x, y, p=1.0), "B 3 4, 5* 4")
add("pdist", F.pdist, "3 4*")
add("dist", torch.dist, "3* 4*, 3* 4*")
add("dist:stretched", torch.dist, "3 4*, 4*")

# --- decompositions -------------------------------------------------------------------------------


def _positive(x: torch.Tensor) -> torch.Tensor:
    """A positive definite matrix for each vector."""
    return x[..., None] * x[..., None, :] + torch.eye(x.shape[-1])


for _name in """
    cholesky cholesky_inverse inverse linalg_cholesky linalg_cholesky_ex linalg_cond linalg_det
    linalg_eig linalg_eigh linalg_eigvals linalg_eigvalsh linalg_inv linalg_inv_ex linalg_lu
    linalg_lu_factor linalg_matrix_exp linalg_matrix_rank linalg_pinv linalg_qr linalg_slogdet
    linalg_svd linalg_svdvals logdet matrix_exp pinverse qr slogdet svd
""".split():
    add(_name, lambda x, n=_name: getattr(aten, n)(_positive(x)), "2* 3")
add("linalg_svd:wide", lambda x: linalg.svd(x, full_matrices=False), "2* 3 4")
add("linalg_solve", lambda a, b: linalg.solve(_positive(a), b), "2* 3, 2* 3 5*")
add("linalg_solve:right", lambda a, b: linalg.solve(_positive(a), b, left=False), "2* 3, 2* 5* 3")
add(
    "linalg_solve_triangular",
    lambda a, b: linalg.solve_triangular(_positive(a), b, upper=True),
    "2* 3, 2* 3 5*",
)
add("cholesky_solve", lambda a, b: torch.cholesky_solve(b, _positive(a)), "2* 3, 2* 3 5*")

# --- complex numbers and Fourier transforms -------------------------------------------------------

add("complex", torch.complex, "3* 4*, 4*")
add("polar", torch.polar, "3* 4*, 4*")
for _name in ("real", "imag", "angle", "conj_physical", "resolve_conj", "resolve_neg"):
    add(_name, lambda x, n=_name: getattr(torch, n)(torch.complex(x, x)), "3* 4*")
add("_conj", lambda x: torch.complex(x, x).conj(), "3* 4*")
add("_neg_view", lambda x: aten._neg_view(x), "3* 4*")
add("view_as_real", lambda x: torch.view_as_real(torch.complex(x, x)), "3* 4*")
add("view_as_complex", torch.view_as_complex, "3* 4* 2")
add(
    "view_as_complex:rotary",
    lambda x, w: torch.view_as_complex(x.view(3, 4, 2)) * torch.polar(torch.ones(4), w),
    "3* 8*, 4*",
)
for _kind in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft"):
    add(f"fft_{_kind}", lambda x, k=_kind: getattr(torch.fft, k)(x, dim=1), "2* 4 3*")
    add(f"fft_{_kind}2", lambda x, k=_kind: getattr(torch.fft, f"{k}2")(x, dim=(0, 1)), "4 4 3*")
    add(f"fft_{_kind}n", lambda x, k=_kind: getattr(torch.fft, f"{k}n")(x, dim=(0, 2)), "4 3* 4")
add("fft_fft:size", lambda x: torch.fft.fft(x, 6), "2* 4")
add("fft_fftn:all", torch.fft.fftn, "2 4")
add("fft_rfft2:batch", lambda x, w: torch.fft.rfft2(x * w, norm="ortho"), "B 4 4 4, 4 1 1")
add("fft_fftshift", lambda x: torch.fft.fftshift(x, dim=1), "2* 4")
add("fft_ifftshift", torch.fft.ifftshift, "2 4")
add(
    "stft",
    lambda x, w: torch.stft(x, 8, 4, window=w, return_complex=True),
    "2* 32, 8",
)
add(
    "istft",
    lambda x, w: torch.istft(torch.complex(x, x), 8, 4, window=w + 1),
    "2* 5 9, 8",
)

# --- losses ---------------------------------------------------------------------------------------

for _name in """
    binary_cross_entropy binary_cross_entropy_with_logits huber_loss kl_div l1_loss mse_loss
    smooth_l1_loss soft_margin_loss hinge_embedding_loss
""".split():
    _none = f"{_name}:none"
    add(_name, packet(_name), "3* 4*, s: 3* 4*")
    add(_none, lambda x, y, n=_name: getattr(aten, n)(x, y, reduction=0), "3* 4*, s: 3* 4*")
add("triplet_margin_loss", F.triplet_margin_loss, "3* 4*, 3* 4*, 3* 4*")
add("cosine_embedding_loss", F.cosine_embedding_loss, "3* 4*, 3* 4*, s: 3*")
add("poisson_nll_loss", lambda x, y: F.poisson_nll_loss(x, y), "3* 4*, 3* 4*")
add("margin_ranking_loss", F.margin_ranking_loss, "4*, 4*, 4*")
add("cross_entropy_loss", F.cross_entropy, "3* 4, i4: 3*")
add(
    "cross_entropy_loss:map",
    lambda x, t: F.cross_entropy(x, t, reduction="none"),
    "2* 4 3*, i4: 2* 3*",
)
add("cross_entropy_loss:shares", F.cross_entropy, "3* 4, 3* 4")
add("cross_entropy_loss:weight", lambda x, t, w: F.cross_entropy(x, t, w), "3* 4, i4: 3*, s: 4")
add("nll_loss_nd", F.nll_loss, "3* 4, i4: 3*")
add("nll_loss", lambda x, t: aten.nll_loss(x, t), "3* 4, i4: 3*")
add("nll_loss2d", lambda x, t: aten.nll_loss2d(x, t), "2* 4 3* 2*, i4: 2* 3* 2*")
