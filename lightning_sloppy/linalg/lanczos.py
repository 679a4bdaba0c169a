"""The Lanczos process with full reorthogonalisation, as one tensor on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_sloppy.linalg.operator import SymmetricOperator
from lightning_sloppy.linalg.vectors import unit_gaussian


class NonFiniteProductError(ArithmeticError):
    """A product held NaN or infinity; callers turn it into ``Status.NON_FINITE``."""


class Lanczos:
    """Tridiagonalise a symmetric operator step by step: ``A Q = Q T + beta_m q_{m+1} e_m^T``.

    Every new vector is orthogonalised by two block passes of classical Gram-Schmidt, as two matrix-vector kernels each,
    first against its two predecessors and then against the whole basis ("twice is enough": Giraud, Langou and
    Rozloznik 2005). Nothing is read back
    from the device inside :meth:`advance` until its last step. A breakdown (the Krylov space is exhausted)
    is no error: the off-diagonal entry becomes an exact zero and the process goes on from a random vector
    orthogonal to all the others, so that T stays the projection of A on the basis.

    Args:
        operator: The matrix.
        start: First vector, shape (p,); need not be normalised.
        rng: CPU generator for the vectors after a breakdown.
        locked: Orthonormal rows, shape (l, p), that the basis is kept orthogonal to.
        capacity: Rows reserved at first; the basis grows by half when it is full.
    """

    def __init__(
        self,
        operator: SymmetricOperator,
        start: Tensor,
        *,
        rng: torch.Generator,
        locked: Tensor | None = None,
        capacity: int = 48,
    ) -> None:
        self.operator = operator
        self._rng = rng
        self._locked = locked
        self._limit = operator.dim - (0 if locked is None else locked.shape[0])
        rows = min(capacity, self._limit) + 1
        self._basis = torch.empty(rows, operator.dim, dtype=operator.dtype, device=operator.device)
        self._scalar_dtype = torch.float32 if operator.device.type == "mps" else torch.float64
        self.diagonal = torch.empty(0, dtype=torch.float64)
        self.offdiagonal = torch.empty(0, dtype=torch.float64)
        self.steps = 0
        first = start.to(operator.device, operator.dtype)
        self._basis[0] = self._orthonormal(first, 0)

    @property
    def basis(self) -> Tensor:
        """The orthonormal rows that T belongs to, shape (m, p)."""
        return self._basis[: self.steps]

    @property
    def exhausted(self) -> bool:
        """Whether the basis spans all there is, so that T holds the whole (unlocked) spectrum."""
        return self.steps >= self._limit

    def advance(self, steps: int) -> None:
        """Take up to ``steps`` more steps, then look once for breakdowns and non-finite values.

        Raises:
            NonFiniteProductError: When a product held NaN or infinity.
        """
        steps = min(steps, self._limit - self.steps)
        if steps <= 0:
            return
        self._reserve(self.steps + steps + 1)
        scalars = torch.empty(2, steps, dtype=self._scalar_dtype, device=self.operator.device)
        for offset in range(steps):
            j = self.steps + offset
            image = self.operator.matvec(self._basis[j])
            # In exact arithmetic the last two vectors are all there is to remove; the pass over the whole basis then
            # is the second one, and the memory traffic half of that of two whole passes.
            residual, near = self._project_out(image, max(j - 1, 0), j + 1)
            residual, whole = self._project_out(residual, 0, j + 1)
            beta = torch.linalg.vector_norm(residual)
            scalars[0, offset] = near[-1] + whole[j]
            scalars[1, offset] = beta
            torch.div(residual, beta.clamp_min(torch.finfo(residual.dtype).tiny), out=self._basis[j + 1])
        self._accept(scalars.to("cpu", torch.float64))

    def _accept(self, scalars: Tensor) -> None:
        """Append the new entries of T; cut at a breakdown and restart behind it."""
        if not bool(torch.isfinite(scalars).all()):
            raise NonFiniteProductError("a matrix-vector product held NaN or infinity")
        diagonal = torch.cat([self.diagonal, scalars[0]])
        offdiagonal = torch.cat([self.offdiagonal, scalars[1]])
        scale = max(float(diagonal.abs().max()), float(offdiagonal.max()))
        # A residual this small is rounding of the product: it carries no direction any more.
        noise = 32 * torch.finfo(self.operator.dtype).eps * scale
        fresh = offdiagonal[self.steps :] <= noise
        broken = int(fresh.nonzero()[0]) + self.steps if bool(fresh.any()) else None
        self.steps = len(diagonal) if broken is None else broken + 1
        self.diagonal, self.offdiagonal = diagonal[: self.steps], offdiagonal[: self.steps].clone()
        if broken is not None or self.exhausted:
            self.offdiagonal[-1] = 0.0
        if broken is not None and not self.exhausted:
            vector = unit_gaussian(self.operator.dim, self._rng).to(self.operator.device, self.operator.dtype)
            self._basis[self.steps] = self._orthonormal(vector, self.steps)

    def _orthonormal(self, vector: Tensor, rows: int) -> Tensor:
        """A vector orthogonalised twice against all rows, of unit norm."""
        for _ in range(2):
            vector, _ = self._project_out(vector, 0, rows)
        return vector.div(torch.linalg.vector_norm(vector))

    def _project_out(self, vector: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
        """One pass of block classical Gram-Schmidt against some rows; returns the vector and its coefficients."""
        if self._locked is not None:
            vector = torch.addmv(vector, self._locked.T, self._locked @ vector, alpha=-1)
        rows = self._basis[first:last]
        coefficients = rows @ vector
        return torch.addmv(vector, rows.T, coefficients, alpha=-1), coefficients

    def _reserve(self, rows: int) -> None:
        rows = min(rows, self._limit + 1)
        if rows <= self._basis.shape[0]:
            return
        grown = min(max(rows, self._basis.shape[0] * 3 // 2), self._limit + 1)
        basis = torch.empty(grown, self.operator.dim, dtype=self._basis.dtype, device=self._basis.device)
        basis[: self.steps + 1] = self._basis[: self.steps + 1]
        self._basis = basis

    def tridiagonal(self) -> Tensor:
        """T in CPU float64, shape (m, m)."""
        return tridiagonal(self.diagonal, self.offdiagonal)


def tridiagonal(diagonal: Tensor, offdiagonal: Tensor) -> Tensor:
    """The symmetric tridiagonal matrix with these diagonals, shape (m, m); extra off-diagonal entries are ignored.

    >>> tridiagonal(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.0]))
    tensor([[1., 3.],
            [3., 2.]])
    """
    off = offdiagonal[: len(diagonal) - 1]
    return torch.diag(diagonal) + torch.diag(off, 1) + torch.diag(off, -1)
