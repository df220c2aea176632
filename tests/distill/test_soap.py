"""SOAP: rounding stays rounding, bases converge, a saved state goes on to the bit, factors need fewer steps."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn
from torch.optim import Optimizer

from convsurgeon.distill import soap
from convsurgeon.distill.soap import Soap

SHAPES = ((6, 6), (5, 5, 1, 1), (4, 6, 3, 1), (5, 4, 3, 3))


def _run(optimizer: Callable[..., Optimizer], shape: tuple[int, ...], gradients: list[Tensor]) -> Tensor:
    parameter = nn.Parameter(torch.zeros(shape, dtype=gradients[0].dtype))
    _steps(optimizer([parameter], lr=0.01), parameter, gradients)
    return parameter.detach()


def _steps(optimizer: Optimizer, parameter: nn.Parameter, gradients: list[Tensor]) -> None:
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()


def _gradients(shape: tuple[int, ...], steps: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(steps)]


@given(st.sampled_from(SHAPES), st.integers(0, 99), st.sampled_from([1, 2, 6]))
def test_rounding_stays_rounding(shape: tuple[int, ...], seed: int, rank: int) -> None:
    """Also where a gradient says nothing of most directions, so that any basis of them would do."""
    generator = torch.Generator().manual_seed(seed)
    thin = torch.randn(shape[0], rank, generator=generator, dtype=torch.float64)
    gradients = [torch.tensordot(thin @ thin.T, one, 1) for one in _gradients(shape, 35, seed)]
    noise = _gradients(shape, 35, seed + 1)
    rounded = [one + 1e-9 * one.norm() * other for one, other in zip(gradients, noise, strict=True)]
    moved = _run(Soap, shape, gradients)
    torch.testing.assert_close(_run(Soap, shape, rounded), moved, rtol=0, atol=1e-4 * float(moved.abs().max()))


@pytest.mark.parametrize("shape", SHAPES)
def test_bases_become_the_eigenvectors_of_the_products(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    turns = [torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q for n in shape[:2]]
    scales = [torch.logspace(0, -1, n, dtype=torch.float64) for n in shape[:2]]
    left, right = (turn * scale for turn, scale in zip(turns, scales, strict=True))
    parameter = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    mover = Soap([parameter], lr=0.01, betas=(0.95, 0.999))
    _steps(mover, parameter, [torch.einsum("ab,bc...,dc->ad...", left, one, right) for one in _gradients(shape, 1500)])
    for product, basis in zip(mover.state[parameter]["products"][:2], mover.state[parameter]["bases"][:2], strict=True):
        torch.testing.assert_close(basis.T @ basis, torch.eye(len(basis), dtype=torch.float64))
        inner = basis.T @ product @ basis
        assert (inner - inner.diag().diag()).norm() < 0.1 * inner.diag().norm()
        assert (product - product.diag().diag()).norm() > 0.2 * product.diag().norm()


def test_vectors_get_adam_after_a_first_look() -> None:
    gradients = _gradients((7,), 20)
    expected = _run(functools.partial(torch.optim.Adam, betas=(0.95, 0.95)), (7,), gradients[1:])
    exact = functools.partial(Soap, eps=1e-10)  # Adam compares with a number, not with the largest root
    torch.testing.assert_close(_run(exact, (7,), gradients), expected, rtol=1e-6, atol=1e-9)
    assert not _run(Soap, (7,), gradients[:1]).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_saved_state_goes_on_to_the_bit(dtype: torch.dtype) -> None:
    gradients = [one.to(dtype) for one in _gradients((6, 5, 3, 3), 40)]
    whole = _run(Soap, (6, 5, 3, 3), gradients)
    parameter, file = nn.Parameter(torch.zeros(6, 5, 3, 3, dtype=dtype)), io.BytesIO()
    before, after = Soap([parameter], lr=0.01), Soap([parameter], lr=0.01)
    _steps(before, parameter, gradients[:17])
    torch.save(before.state_dict(), file)
    file.seek(0)
    after.load_state_dict(torch.load(file, weights_only=True))
    _steps(after, parameter, gradients[17:])
    assert torch.equal(parameter, whole)
    assert whole.isfinite().all()
    assert whole.any()


def test_axes_that_one_gradient_says_little_of_have_no_basis() -> None:
    parameter = nn.Parameter(torch.zeros(8, 1, 3, 3))  # a depthwise kernel: nine numbers for each of eight channels
    mover = Soap([parameter])
    _steps(mover, parameter, [torch.ones(8, 1, 3, 3)])
    assert [basis is not None for basis in mover.state[parameter]["bases"]] == [True, False, True, True]
    wider = nn.Parameter(torch.zeros(10, 1, 3, 3))
    mover = Soap([wider])
    _steps(mover, wider, [torch.ones(10, 1, 3, 3)])
    assert [basis is not None for basis in mover.state[wider]["bases"]] == [False, False, True, True]


def test_long_axes_have_no_basis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soap, "LONGEST", 5)
    parameter = nn.Parameter(torch.zeros(6, 5, 3))
    mover = Soap([parameter])
    _steps(mover, parameter, [torch.ones(6, 5, 3)])
    assert [None if basis is None else basis.shape[0] for basis in mover.state[parameter]["bases"]] == [None, 5, 3]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_left_to_the_loss_to_show(value: float) -> None:
    parameter = nn.Parameter(torch.zeros(3, 3))
    _steps(Soap([parameter], every=1), parameter, [torch.full((3, 3), value)] * 3)
    assert parameter.isnan().all()


def test_factors_of_a_matrix_need_fewer_steps_than_with_adam() -> None:
    """Two factors, correlated inputs, noisy batches: what a rewritten conv is."""

    def ends(optimizer: Callable[..., Optimizer]) -> float:
        generator = torch.Generator().manual_seed(0)
        mixing = torch.randn(16, 16, generator=generator) * torch.logspace(0, -1.5, 16)
        target = torch.randn(16, 16, generator=generator)
        first, second = (nn.Parameter(0.3 * torch.randn(*shape, generator=generator)) for shape in ((8, 16), (16, 8)))
        mover = optimizer([first, second], lr=0.01)
        best = torch.linalg.svdvals(target @ mixing)[8:].square().sum()
        for _ in range(300):
            inputs = mixing @ torch.randn(16, 64, generator=generator)
            mover.zero_grad()
            ((second @ first - target) @ inputs).square().mean().backward()
            mover.step()
        return float((((second @ first - target) @ mixing).square().sum() - best).detach())

    assert ends(Soap) < 0.5 * ends(torch.optim.Adam)
