"""Merging attention over parts of the keys."""

from __future__ import annotations

import torch

from ltxgen.attention.reference import Reference
from ltxgen.parallel.ring import merge

attend = Reference()


def test_parts_merge_to_the_whole():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, tokens, 8, dtype=torch.float64) for tokens in (5, 11, 11))
    mask = torch.randn(2, 1, 5, 11, dtype=torch.float64)
    mask[0, :, :, :4] = torch.finfo(mask.dtype).min  # the first part is hidden from the first sample
    parts = [attend.with_lse(q, k[:, :, part], v[:, :, part], mask[..., part]) for part in (slice(4), slice(4, 11))]
    for first, second in (parts, parts[::-1]):
        out, lse = merge(*first, *second)
        torch.testing.assert_close(out, attend(q, k, v, mask), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(lse, attend.with_lse(q, k, v, mask)[1], rtol=1e-12, atol=1e-12)


def test_a_query_that_sees_nothing_stays_finite():
    nothing = torch.zeros(1, 1, 2, 4), torch.full((1, 1, 2), -torch.inf)
    out, lse = merge(*nothing, *nothing)
    assert (out == 0).all()
    assert (lse == -torch.inf).all()


def test_halves_are_merged_in_float32():
    out = torch.ones(1, 1, 2, 4, dtype=torch.bfloat16)
    merged, _ = merge(out, torch.zeros(1, 1, 2), out, torch.zeros(1, 1, 2))
    assert merged.dtype == torch.float32
