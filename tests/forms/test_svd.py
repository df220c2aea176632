"""Law 2: the squared error is the discarded squared singular values, and more rank never loses more."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st

from convsurgeon.forms import svd

SIZES = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))


@given(SIZES, st.integers(0, 999), st.data())
def test_error_squared_is_what_the_singular_values_say(
    size: tuple[int, int, int], seed: int, data: st.DataObject
) -> None:
    matrices = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    full = min(size[1:])
    rank = data.draw(st.integers(1, full))
    left, right = svd.truncate(matrices, rank)
    discarded = torch.linalg.svdvals(matrices)[:, rank:].square().sum()
    error = (left @ right - matrices).square().sum()
    torch.testing.assert_close(error, discarded, rtol=1e-9, atol=1e-18 + 1e-20 * float(matrices.square().sum()))
    energies = svd.spectrum(matrices)
    torch.testing.assert_close(energies[rank:].sum(), discarded, rtol=1e-6, atol=1e-12)
    assert svd.lost(energies, rank) <= svd.lost(energies, max(1, rank - 1))


@pytest.mark.parametrize("shape", [(3, 5, 4), (3, 4, 5), (2, 1, 6), (2, 6, 1)])
@pytest.mark.parametrize("kind", ["rank one", "zeros", "tiny", "one huge column"])
def test_full_rank_is_exact_for_ill_conditioned_matrices(shape: tuple[int, int, int], kind: str) -> None:
    matrices = torch.randn(shape, dtype=torch.float64)
    if kind == "rank one":
        matrices = matrices[:, :, :1] @ matrices[:, :1, :]
    elif kind == "one huge column":
        matrices[..., 0] *= 1e8
    else:
        matrices = matrices * {"zeros": 0.0, "tiny": 1e-200}[kind]
    left, right = svd.truncate(matrices, min(shape[1:]))
    torch.testing.assert_close(left @ right, matrices, rtol=1e-7, atol=1e-12 * float(matrices.abs().max()))


def test_blocks_do_not_change_the_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = torch.randn(7, 6, 5)
    whole = svd.truncate(matrices, 2)
    monkeypatch.setattr(svd, "_BLOCK_ELEMENTS", 60)
    pieces = svd.truncate(matrices, 2)
    for one, two in zip(whole, pieces, strict=True):
        torch.testing.assert_close(one, two)
    torch.testing.assert_close(svd.spectrum(matrices), torch.linalg.svdvals(matrices.double()).square().sum(0))


def test_the_two_sides_share_the_singular_values() -> None:
    left, right = svd.truncate(torch.randn(4, 6, 5, dtype=torch.float64), 3)
    torch.testing.assert_close(left.norm(dim=1), right.norm(dim=2))


def test_nothing_is_lost_of_nothing() -> None:
    assert svd.lost(svd.spectrum(torch.zeros(2, 3, 4)), 1) == 0.0
