from __future__ import annotations

import torch
from support.spectra import with_eigenvalues

from lightning_sloppy.linalg.operator import DenseOperator


def test_products_are_counted_and_announced() -> None:
    operator = DenseOperator(with_eigenvalues(torch.arange(1.0, 6.0)))
    heard: list[int] = []
    operator.on_product = heard.append
    operator.matvec(torch.ones(5, dtype=torch.float64))
    operator.matmat(torch.eye(5, 3, dtype=torch.float64))
    assert operator.products == 4
    assert heard == [1, 3]
    assert operator.product_seconds > 0


def test_matmat_and_dense_are_the_matrix() -> None:
    matrix = with_eigenvalues(torch.linspace(-2, 3, 7))
    operator = DenseOperator(matrix.float())
    vectors = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(operator.matmat(vectors), matrix.float() @ vectors)
    dense = operator.dense()
    assert dense.dtype == torch.float64
    assert torch.equal(dense, dense.T)
    torch.testing.assert_close(dense, matrix, atol=1e-6, rtol=0)
