"""Forms of linear algebra, spectra, losses, quantiles, recurrent cells and indexed writes."""

from __future__ import annotations

from tests.fuzz.forms import WIDTH, Form, Part

__all__ = ["ALGEBRA_FORMS"]

ALGEBRA_FORMS: dict[str, Form] = {}


def form(name: str, text: str, weight: float = 0.5, /, **parts: Part) -> None:
    """Enter a form as ``op`` or ``op:mode``."""
    assert name not in ALGEBRA_FORMS, name
    ALGEBRA_FORMS[name] = Form(text, weight, **parts)


_D = "span(-len(s), len(s) - 1)"
_DIM = {"x": "t: *s", "when": "s", "d": _D}
_KEEP = {**_DIM, "k": (True, False)}

# --- matrices -------------------------------------------------------------------------------------

# Positive definite, so that every decomposition exists and is stable.
_MATRIX = {"x": "t: *b c d"}
_SPD = "({x} @ {x}.mT + torch.eye({c}))"
for _name in ("cholesky", "inverse", "matrix_exp"):
    form(_name, f"torch.{_name}({_SPD} * 0.3)", **_MATRIX)
for _name in ("det", "eigvalsh", "inv", "cholesky", "matrix_exp", "pinv", "cond", "svdvals"):
    form(f"linalg_{_name}", f"torch.linalg.{_name}({_SPD} * 0.3)", **_MATRIX)
for _name in ("inv_ex", "cholesky_ex"):
    form(f"linalg_{_name}", f"torch.linalg.{_name}({_SPD})[0]", **_MATRIX)
form("pinverse", f"torch.pinverse({_SPD})", **_MATRIX)
form("logdet", f"torch.logdet({_SPD})", **_MATRIX)
form("slogdet", f"torch.slogdet({_SPD})[1]", **_MATRIX)
form("linalg_slogdet", f"torch.linalg.slogdet({_SPD})[1]", **_MATRIX)
form("linalg_matrix_rank", f"{{x}} * torch.linalg.matrix_rank({_SPD})[..., None, None]", **_MATRIX)
form("linalg_eigh", f"torch.linalg.eigh({_SPD})[0]", **_MATRIX)
# Sorted: the order of these is up to rounding.
form("linalg_eig", f"torch.linalg.eig({_SPD})[0].abs().sort().values", 0.3, **_MATRIX)
form("linalg_eigvals", f"torch.linalg.eigvals({_SPD}).abs().sort().values", 0.3, **_MATRIX)
form("linalg_svd", "torch.linalg.svd({x})[1]", **_MATRIX)
form("svd", "torch.svd({x})[1]", **_MATRIX)
form("linalg_qr", "torch.linalg.qr({x})[1].abs()", **_MATRIX)
form("qr", "torch.qr({x})[1].abs()", **_MATRIX)
form("linalg_lu", f"torch.linalg.lu({_SPD})[2]", **_MATRIX)
form("linalg_lu_factor", f"torch.linalg.lu_factor({_SPD})[0]", **_MATRIX)
form("linalg_solve", f"torch.linalg.solve({_SPD}, {{y}})", **_MATRIX, y="p: c e")
form(
    "linalg_solve_triangular",
    f"torch.linalg.solve_triangular(torch.linalg.cholesky({_SPD}), {{y}}, upper=False)",
    **_MATRIX,
    y="p: c e",
)
form(
    "cholesky_solve",
    f"torch.cholesky_solve({{y}}, torch.linalg.cholesky({_SPD}))",
    x="t: c d",
    y="p: c e",
)
form("cholesky_inverse", f"torch.cholesky_inverse(torch.linalg.cholesky({_SPD}))", **_MATRIX)
form("matrix_power", f"torch.matrix_power({_SPD} * 0.3, {{k}})", **_MATRIX, k=(2, 3))
form("linalg_matrix_power", f"torch.linalg.matrix_power({_SPD} * 0.3, {{k}})", **_MATRIX, k=(2, 3))
form("linalg_matrix_norm", "torch.linalg.matrix_norm({x}, {k})", **_MATRIX, k=('"fro"', '"nuc"', 1))
form("linalg_norm", "torch.linalg.norm({x}, 2, {d}, {k})", **_KEEP)
form("frobenius_norm", "aten.frobenius_norm({x}, [-1], {k})", x="t: *s c", k=(True, False))
form("nuclear_norm", "aten.nuclear_norm({x})", x="t: c d")
form("renorm", "torch.renorm({x}, 2, {d}, 1.0)", **_DIM)
form("trace", "torch.trace({x})", x="t: c d")
# Expanded, so that another batch is refused: torch (2.13) reads and writes past a scale too short.
form(
    "_weight_norm",
    "torch._weight_norm({x}, {y}.expand_as({x}[:, :1]), 0)",
    x="t: c d",
    y="p: c 1",
)
form(
    "weight_norm",
    "{m}({x})",
    1.0,
    x="t: *b i",
    o=WIDTH,
    m="m: nn.utils.parametrizations.weight_norm(nn.Linear({i}, {o}))",
)
form("cross", "torch.cross({x}, {y}, -1)", x="t: *s 3", y="t: *s 3")
form("linalg_cross", "torch.linalg.cross({x}, {y})", x="t: *s 3", y="t: *s 3")

# --- products -------------------------------------------------------------------------------------

form("addmv", "torch.addmv({y}, {x}, {w})", x="t: n c", w="t: c", y="t: n")
form("addr", "torch.addr({y}, {x}, {w})", x="t: n", w="t: c", y="t: n c")
form("addbmm", "torch.addbmm({y}, {x}, {w})", x="t: n i j", w="t: n j o", y="p: i o")
form("linalg_vecdot", "torch.linalg.vecdot({x}, {y})", x="t: *b c", y="t: *b c")
form("vdot", "torch.vdot({x}, {y})", x="t: c", y="t: c")
form("tensordot", "torch.tensordot({x}, {w}, 1)", 1.0, x="t: *b c", w="t: c o")
form("tensordot:dims", "torch.tensordot({x}, {w}, ([1], [0]))", x="t: n c *s", w="t: c o")
form(
    "linalg_multi_dot",
    "torch.linalg.multi_dot([{x}, {w}, {v}])",
    x="t: n c",
    w="t: c o",
    v="p: o k",
)
form("chain_matmul", "torch.chain_matmul({x}, {w})", x="t: n c", w="t: c o")
form("pairwise_distance", "F.pairwise_distance({x}, {y})", x="t: n c", y="t: n c")
form("cdist", "torch.cdist({x}, {y})", x="t: *b n c", y="p: k c")
form("pdist", "F.pdist({x})", x="t: n c", when="n > 1")
form("dist", "torch.dist({x}, {y}) * {x}", x="t: *s", y="~:")
form("kron", "torch.kron({x}, {y})", x="t: n c", y="p: 2 k")
form("block_diag", "torch.block_diag({x}, {y})", x="t: n c", y="t: k l")
form("cartesian_prod", "torch.cartesian_prod({x}, {y})", x="t: n", y="t: c")
form("diag_embed", "torch.diag_embed({x})", x="t: *b c", when="c < 9")

# --- reductions and orders ------------------------------------------------------------------------

for _name in ("nansum", "nanmean"):
    form(_name, f"{{x}}.{_name}({{d}}, keepdim={{k}})", **_KEEP)
form("count_nonzero", "({x} > 0).count_nonzero({d}) * 0.5", **_DIM)
form("aminmax", "torch.aminmax({x}, dim={d}, keepdim={k})", **_KEEP)
form("kthvalue", "torch.kthvalue({x}, 1, {d}, {k})", **_KEEP)
form("mode", "torch.mode({x}, {d}, {k})[0]", **_KEEP)
form("nanmedian", "torch.nanmedian({x}.contiguous(), {d}, {k})[0]", **_KEEP)  # see median
for _name in ("quantile", "nanquantile"):
    form(_name, f"torch.{_name}({{x}}, 0.4, {{d}}, {{k}})", **_KEEP)
form("_log_softmax", "aten._log_softmax({x}, {d}, False)", **_DIM)
form("_safe_softmax", "aten._safe_softmax({x}, {d})", **_DIM)
for _name in ("cummax", "cummin"):
    form(_name, f"torch.{_name}({{x}}, {{d}})[0]", **_DIM)
form("msort", "torch.msort({x})", x="t: n *s")
form("mvlgamma", "torch.mvlgamma({x}.abs() + 2, 2)", x="t: *s")
form("polygamma", "torch.polygamma(1, {x}.abs() + 1)", x="t: *s")
form("bucketize", "torch.bucketize({x}, torch.linspace(-1, 1, 5))", x="t: *s")
form("searchsorted", "torch.searchsorted(torch.linspace(-1, 1, 5), {x})", x="t: *s")

# --- spectra --------------------------------------------------------------------------------------

for _name in ("fft", "ifft", "rfft", "ihfft"):
    form(f"fft_{_name}", f"torch.fft.{_name}({{x}}, dim={{d}}).abs()", **_DIM)
    for _two in ("2", "n"):
        form(f"fft_{_name}{_two}", f"torch.fft.{_name}{_two}({{x}}).abs()", 0.3, x="t: *b h w")
for _name in ("irfft", "hfft"):
    form(f"fft_{_name}", f"torch.fft.{_name}(torch.fft.rfft({{x}}))", x="t: *b c", when="c > 1")
    for _two in ("2", "n"):
        _inner = f"torch.fft.rfft{_two}({{x}})"
        form(
            f"fft_{_name}{_two}",
            f"torch.fft.{_name}{_two}({_inner})",
            0.3,
            x="t: h w",
            when="w > 1",
        )
for _name in ("fftshift", "ifftshift"):
    form(f"fft_{_name}", f"torch.fft.{_name}({{x}}, {{d}})", **_DIM)
form("fft_fftfreq", "{x} + torch.fft.fftfreq({c})", x="t: *b c")
form("fft_rfftfreq", "{x} + torch.fft.rfftfreq({c} * 2 - 1)", x="t: *b c")
form("view_as_real", "torch.view_as_real(torch.fft.fft({x}))", x="t: *b c")
form("view_as_complex", "torch.view_as_complex({x}).abs()", x="t: *b c 2")
form(
    "rotary",
    "torch.view_as_real(torch.view_as_complex({x}.unflatten(-1, (-1, 2))) * 1j).flatten(-2)",
    x="t: n t c",
    when="c % 2 == 0",
)
form(
    "stft",
    "torch.stft({x}, 4, 2, window=torch.ones(4), center=False, return_complex=True).abs()",
    x="t: n l",
    when="l > 5",
)
form(
    "istft",
    "torch.istft(torch.stft({x}, 4, 1, window=torch.ones(4), return_complex=True), 4, 1, "
    "window=torch.ones(4))",
    x="t: n l",
    when="l > 5",
)
for _name in ("bartlett", "blackman", "hamming", "hann", "kaiser"):
    form(f"{_name}_window", f"{{x}} * torch.{_name}_window({{c}})", 0.3, x="t: *b c")
form("logspace", "{x} * torch.logspace(0, 1, {c}, 2)", 0.3, x="t: *b c")

# --- losses ---------------------------------------------------------------------------------------

_REDUCED = {"x": "t: *s", "y": "~:", "k": ('"none"', '"mean"', '"sum"')}
_LOSS = {"x": "t: n *s", "y": "t: n *s", "k": ('"none"', '"mean"', '"sum"')}
for _name in ("l1_loss", "mse_loss", "smooth_l1_loss", "huber_loss", "kl_div", "poisson_nll_loss"):
    form(_name, f"F.{_name}({{x}}, {{y}}, reduction={{k}})", **_LOSS)
form("soft_margin_loss", "F.soft_margin_loss({x}, {y}.detach().sign(), reduction={k})", **_LOSS)
form(
    "hinge_embedding_loss",
    "F.hinge_embedding_loss({x}, {y}.detach().sign(), reduction={k})",
    **_LOSS,
)
form(
    "margin_ranking_loss",
    "F.margin_ranking_loss({x}, {y}, {y}.detach().sign(), 0.3, reduction={k})",
    x="t: n",
    y="t: n",
    k=('"none"', '"mean"', '"sum"'),
)
form(
    "binary_cross_entropy",
    "F.binary_cross_entropy({x}.sigmoid(), {y}.sigmoid(), reduction={k})",
    **_LOSS,
)
form(
    "binary_cross_entropy_with_logits",
    "F.binary_cross_entropy_with_logits({x}, {y}.sigmoid(), reduction={k})",
    **_LOSS,
)
form(
    "cross_entropy_loss",
    "F.cross_entropy({x}, {i}, reduction={k})",
    x="t: n c",
    i="k:c: n",
    k=('"none"', '"mean"', '"sum"'),
)
form("nll_loss", "aten.nll_loss({x}, {i})", x="t: n c", i="k:c: n")
form("nll_loss2d", "aten.nll_loss2d({x}, {i})", x="t: n c h w", i="k:c: n h w")
form("nll_loss_nd", "F.nll_loss({x}, {i})", x="t: n c", i="k:c: n")

# --- recurrent nets -------------------------------------------------------------------------------

_RNN = {"x": "t: n t c", "h": WIDTH, "b": (True, False)}
for _kind in ("tanh", "relu"):
    _rnn = f'm: nn.RNN({{c}}, {{h}}, nonlinearity="{_kind}", batch_first=True, bidirectional={{b}})'
    form(f"rnn_{_kind}", "{m}({x})[0]", 1.0, **_RNN, m=_rnn)
    _cell = f'm: nn.RNNCell({{c}}, {{h}}, nonlinearity="{_kind}")'
    form(f"rnn_{_kind}_cell", "{m}({x})", 1.0, x="t: n c", h=WIDTH, m=_cell)
form("lstm_cell", "{m}({x})", 1.0, x="t: n c", h=WIDTH, m="m: nn.LSTMCell({c}, {h})")
form("gru_cell", "{m}({x})", 1.0, x="t: n c", h=WIDTH, m="m: nn.GRUCell({c}, {h})")

# --- shapes and new tensors -----------------------------------------------------------------------

for _rank in (1, 2, 3):
    form(f"atleast_{_rank}d", f"torch.atleast_{_rank}d({{x}})", 0.4, x="t: *s")
form("row_stack", "torch.row_stack([{x}, {y}])", x="t: a c *s", y="t: b c *s")
form("broadcast_tensors", "torch.broadcast_tensors({x}, {y})", x="t: *s", y="~:")
form("randint", "{x} + torch.randint(0, 9, ({c},)) * 0", 0.2, x="t: *b c")
form("randperm", "{x} + torch.randperm({c}) * 0", 0.2, x="t: *b c")
form("multinomial", "torch.multinomial({x}.exp(), {c}) * 0 + {x}", 0.2, x="t: n c")
form(
    "affine_grid_generator",
    "F.grid_sample({x}, F.affine_grid({y}, [{n}, {c}, 3, 4], "
    "align_corners=False), align_corners=False)",
    x="t: n c h w",
    y="p: n 2 3",
)
form(
    "_upsample_bilinear2d_aa",
    'F.interpolate({x}, (3, 2), mode="bilinear", antialias=True)',
    x="t: n c h w",
)
form(
    "_upsample_bicubic2d_aa",
    'F.interpolate({x}, (3, 2), mode="bicubic", antialias=True)',
    x="t: n c h w",
)
form(
    "max_unpool2d",
    "F.max_unpool2d(*F.max_pool2d({x}, 2, return_indices=True), 2)",
    x="t: n c h w",
    when="h % 2 == w % 2 == 0",  # else a place may lie outside of the smaller map
)
form(
    "max_unpool3d",
    "F.max_unpool3d(*F.max_pool3d({x}, 2, return_indices=True), 2)",
    x="t: n c d h w",
    when="d % 2 == h % 2 == w % 2 == 0",
)
form("one_hot", "F.one_hot({x}.abs() % 4, 4)", x="i: *s")
form("embedding_bag", "{m}({x}.abs() % 8)", x="i: n c", o=WIDTH, m="m: nn.EmbeddingBag(8, {o})")

# --- indexed writes -------------------------------------------------------------------------------

for _name in ("scatter", "scatter_add"):
    form(
        _name,
        f"torch.{_name}({{x}}, 1, {{i}}, {{y}})",
        x="t: n c *s",
        i="k:c: n 1 *s",
        y="t: n 1 *s",
    )
form(
    "scatter_reduce",
    '{x}.scatter_reduce(1, {i}, {y}, "{k}")',
    x="t: n c",
    i="k:c: n k_",
    y="t: n k_",
    k=("sum", "amax", "mean"),
)
form(
    "index_add", "{x}.index_add({d}, {i}, {x}.select({d}, 0).unsqueeze({d}))", **_DIM, i="k:s[d]: 1"
)
form(
    "index_copy",
    "{x}.index_copy({d}, {i}, {x}.select({d}, 0).unsqueeze({d}))",
    **_DIM,
    i="k:s[d]: 1",
)
form("index_fill", "{x}.index_fill({d}, {i}, 0.5)", **_DIM, i="k:s[d]: 2")
form(
    "index_reduce",
    'torch.index_reduce({x}, 0, {i}, {y}, "amax")',
    x="t: n *s",
    i="k:n: 1",
    y="t: 1 *s",
)
form("take_along_dim", "{x}.take_along_dim({i}, 1)", x="t: n c", i="k:c: n k")
form("take", "torch.take({x}, {i})", x="t: n c", i="k:n * c: k l")
form("masked_scatter", "{x}.masked_scatter({m}, {y})", x="t: n c", m="b: n c", y="t: n c")
form(
    "select_scatter",
    "torch.select_scatter({x}, {y}, 1, {k})",
    x="t: n c *s",
    k="span(0, c - 1)",
    y="t: n *s",
)
form(
    "slice_scatter",
    "torch.slice_scatter({x}, {y}, 1, 0, {k})",
    x="t: n c *s",
    k="span(1, c)",
    y="t: n k *s",
)

# --- complex numbers and integers -----------------------------------------------------------------

form("complex", "torch.complex({x}, {y}).abs()", x="t: *s", y="~:")
form("polar", "torch.polar({x}.exp(), {y}).abs()", x="t: *s", y="~:")
form("imag", "torch.fft.fft({x}).imag", x="t: *b c")
form("real", "torch.fft.fft({x}).real", x="t: *b c")
form("_conj", "torch.view_as_real(torch.fft.fft({x}).conj().resolve_conj())", x="t: *b c")
for _name in ("__lshift__", "__rshift__", "bitwise_left_shift", "bitwise_right_shift"):
    form(_name, f"aten.{_name}({{x}} % 5, {{y}} % 3)", 0.3, x="i: *s", y="i: *s")
for _name in ("gcd", "lcm"):
    form(_name, f"torch.{_name}({{x}} % 5 + 1, {{y}} % 3 + 1)", 0.3, x="i: *s", y="i: *s")

# --- more -----------------------------------------------------------------------------------------

form(
    "triplet_margin_loss",
    "F.triplet_margin_loss({x}, {y}, {z})",
    x="t: n c",
    y="t: n c",
    z="t: n c",
)
form(
    "cosine_embedding_loss",
    "F.cosine_embedding_loss({x}, {y}, torch.ones({n}))",
    x="t: n c",
    y="t: n c",
)
form("column_stack", "torch.column_stack([{x}, {y}])", x="t: n c *s", y="t: n d *s")
form("dstack", "torch.dstack([{x}, {y}])", x="t: n c *s", y="t: n c *s")
for _name in ("fliplr", "flipud"):
    form(_name, f"torch.{_name}({{x}})", x="t: n c *s")
form("rot90", "torch.rot90({x}, {k})", x="t: n c *s", k=(1, 2, 3))
form("diag", "torch.diag({x})", x="t: n c")
form(
    "as_strided",
    "{x}.contiguous().as_strided(({n}, {c} - 1), ({c}, 1), 1)",
    x="t: n c",
    when="c > 1",
)
form("fill_diagonal", "{x}.clone().fill_diagonal_(0.5)", x="t: n c")
form("diagonal_scatter", "torch.diagonal_scatter({x}, {y})", x="t: c c", y="t: c")
form(
    "native_channel_shuffle",
    "torch.native_channel_shuffle({x}.contiguous(), {g})",
    x="t: n c h w",
    g="factors(c)",
)
