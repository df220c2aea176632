r"""Truncated SVD of many small matrices at once, through their Gram matrices. Tensors only.

For `A` (M x N, N <= M) the right singular vectors are the eigenvectors `V` of the N x N Gram matrix `A^T A`, and the
best rank-T approximation (Eckart & Young 1936) is `(A V_T) V_T^T`: one batched product, one batched `eigh`, no
division. With all N vectors it is `A` again up to rounding, however ill-conditioned `A` may be. For N > M the other
side is used.

Law: `|A - A_T|^2` equals the sum of the discarded squared singular values.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from convsurgeon.forms.systems import eigen, eigenvalues

_BLOCK_ELEMENTS = 1 << 20
"""Matrix elements held in float64 at a time (8 MB): a 2048-channel layer is factored without a copy of itself."""


Factors = tuple[Tensor, Tensor]
"""Left (B, M, T) and right (B, T, N), whose product approximates a batch of matrices."""


def spectrum(matrices: Tensor) -> Tensor:
    """Return squared singular values (min(M, N),) of matrices (B, M, N), largest first, summed over the batch."""
    total = torch.zeros(min(matrices.shape[1:]), dtype=torch.float64, device=matrices.device)
    for block in _blocks(matrices):
        total += eigenvalues(_gram(block)).clamp(min=0).flip(-1).sum(0)
    return total


def truncate(matrices: Tensor, rank: int) -> Factors:
    """Return the best factors of matrices (B, M, N), singular values shared evenly between the two sides.

    They are in float64, their signs fixed so that the same matrices always give the same factors.
    """
    lefts, rights = zip(*(_truncate(block, rank) for block in _blocks(matrices)), strict=True)
    return torch.cat(lefts), torch.cat(rights)


def lost(energies: Tensor, rank: int) -> float:
    """Return the share of the energy that the first `rank` directions do not keep, 0 for a layer of zeros."""
    total = float(energies.sum())
    return max(0.0, float(energies[rank:].sum()) / total) if total > 0 else 0.0


def _blocks(matrices: Tensor) -> Iterator[Tensor]:
    """Yield the batch in float64, a bounded number of elements at a time."""
    size = max(1, _BLOCK_ELEMENTS // max(1, matrices[0].numel()))
    for block in matrices.detach().split(size):
        yield block.to(torch.float64)


def _gram(block: Tensor) -> Tensor:
    """Return the smaller of the two Gram matrices, (B, min(M, N), min(M, N))."""
    return block.mT @ block if block.shape[2] <= block.shape[1] else block @ block.mT


def _truncate(block: Tensor, rank: int) -> Factors:
    if block.shape[2] > block.shape[1]:
        right, left = _truncate(block.mT, rank)
        return left.mT, right.mT
    values, vectors = eigen(_gram(block))
    right = vectors[..., -rank:].flip(-1)
    largest = right.gather(1, right.abs().argmax(1, keepdim=True))
    right = right * torch.where(largest < 0, -1.0, 1.0)
    left = block @ right
    size = values[..., -rank:].flip(-1).clamp(min=0).pow(0.25)[:, None, :]
    size = torch.where(size > 1e-4 * size.amax(dim=(1, 2), keepdim=True), size, 1.0)
    return left / size, (right * size).mT
