"""Samples of ops that write at positions an index names, and that read tables by index."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.laws.harness import Samples

WRITES = Samples()
add = WRITES.add
aten = torch.ops.aten

add("scatter", lambda x, i, s: x.scatter(1, i, s), "2* 5, i5: 2* 3, 2* 3")
add("scatter:value", lambda x, i: x.scatter(0, i, 1.0), "5 3*, i5: 2 3*")
add("scatter:part", lambda x, i, s: x.scatter(1, i, s), "2 5, i5: 1 3, 2 4")
add("scatter:add", lambda x, i, s: x.scatter(1, i, s, reduce="add"), "2* 5, i5: 2* 3*, 2* 3*")
add("scatter:times", lambda x, i, s: x.scatter(1, i, s, reduce="multiply"), "2* 5, i5: 2* 3, 2* 3")
add("scatter:inplace", lambda x, i, s: x.clone().scatter_(1, i, s), "2* 5, i5: 2* 3, 2* 3")
add("scatter:batch", lambda x, i: x.scatter(-1, i, 0.0), "B 5, i5: B 2")
add("scatter_add", lambda x, i, s: x.scatter_add(0, i, s), "5 3*, i5: 4* 3*, 4* 3*")
add("scatter_add:part", lambda x, i, s: x.scatter_add(0, i, s), "5 3*, i5: 2 3*, 4 3*")
for _how, _star in (("sum", "*"), ("mean", ""), ("amax", ""), ("prod", "")):
    add(
        "scatter_reduce" + (f":{_how}" if _how != "sum" else ""),
        lambda x, i, s, h=_how: x.scatter_reduce(0, i, s, h),
        f"5 3*, i5: 4{_star} 3*, 4{_star} 3*",
    )
add(
    "scatter_reduce:fresh",
    lambda x, i, s: x.scatter_reduce(0, i, s, "sum", include_self=False),
    "5 3*, i5: 4 3*, 4 3*",
)
add("index_add", lambda x, i, s: x.index_add(1, i, s, alpha=2), "2* 5 3*, i5: 4*, 2* 4* 3*")
add("index_copy", lambda x, i, s: x.index_copy(0, i + torch.arange(2), s), "5 3*, i1: 2, 2 3*")
add("index_fill", lambda x, i: x.index_fill(0, i, 1.0), "5 3*, i5: 2")
add("index_fill:tensor", lambda x, i, v: x.index_fill(0, i, v.sum()), "5 3*, i5: 2, 2*")
add("index_reduce", lambda x, i, s: x.index_reduce(0, i, s, "amax"), "5 3*, i5: 2, 2 3*")
add("take_along_dim", lambda x, i: x.take_along_dim(i, 1), "2* 5 3*, i5: 2* 4* 1")
add("take", torch.take, "3 4, i12: 2* 3*")
add("masked_scatter", lambda x, m, s: x.masked_scatter(m, s), "2 3, b: 2 3, 6")
add("select_scatter", lambda x, s: x.select_scatter(s, 1, 2), "2* 6*, 2*")
add("select_scatter:last", lambda x, s: x.select_scatter(s, 0, -1), "4* 3*, 3*")
add("slice_scatter", lambda x, s: x.slice_scatter(s, 1, 2, 5), "2* 6*, 2* 3*")
add("slice_scatter:whole", lambda x, s: x.slice_scatter(s, 1), "2* 6*, 2* 6*")
add("slice_scatter:step", lambda x, s: x.slice_scatter(s, 1, 0, 6, 2), "2* 6, 2* 3")
add("one_hot", lambda i: F.one_hot(i, 5), "i5: 3* 4*")
add("embedding_bag", lambda w, i, o: F.embedding_bag(i, w, o), "7 4*, i7: 6, i1: 1")
add("embedding_bag:max", lambda w, i, o: F.embedding_bag(i, w, o, mode="max"), "7 4*, i7: 6, i1: 1")
add("embedding_bag:rows", lambda w, i: F.embedding_bag(i, w, mode="sum"), "7 4*, i7: 2 3")
add(
    "embedding_bag:weighted",
    lambda w, i, s: F.embedding_bag(i, w, mode="sum", per_sample_weights=s),
    "7 4*, i7: 2 3, 2 3",
)
add("bucketize", torch.bucketize, "2* 3*, 4")
add("searchsorted", lambda x, s: torch.searchsorted(s, x), "2* 3*, 4")
add("searchsorted:rows", lambda x, s: torch.searchsorted(s, x), "2* 3*, 2* 4")
