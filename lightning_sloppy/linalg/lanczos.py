"""The Lanczos process with full reorthogonalisation, as one tensor on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_sloppy.linalg.basis import Basis, Storage
from lightning_sloppy.linalg.operator import SymmetricOperator
from lightning_sloppy.linalg.vectors import unit_gaussian


class NonFiniteProductError(ArithmeticError):
    """A product contains NaN or infinity. Callers turn it into ``Status.NON_FINITE``."""


class Lanczos:
    """Tridiagonalise a symmetric operator step by step: ``A Q = Q T + beta_m q_{m+1} e_m^T``.

    Every new vector is orthogonalised by two block passes of classical Gram-Schmidt, as two matrix-vector kernels each,
    first against its two predecessors and then against the whole basis ("twice is enough": Giraud, Langou and
    Rozloznik 2005). :meth:`advance` reads nothing back from the device until its last step. A breakdown (the Krylov
    space is exhausted) is not an error: the off-diagonal entry becomes an exact zero, and the process continues from a
    random vector orthogonal to all others, so that T remains the projection of A on the basis.

    Args:
        operator: The matrix.
        start: First vector, shape (p,). It need not be normalised.
        rng: CPU generator for the vectors after a breakdown.
        locked: Orthonormal rows, shape (l, p), to which the basis is kept orthogonal.
        capacity: Initial number of rows. The basis grows by half when it is full.
        most: Largest number of rows that fit into memory. None: no limit.
        storage: Where the basis is kept.
    """

    def __init__(
        self,
        operator: SymmetricOperator,
        start: Tensor,
        *,
        rng: torch.Generator,
        locked: Tensor | None = None,
        capacity: int = 48,
        most: int | None = None,
        storage: Storage = "device",
    ) -> None:
        self.operator = operator
        self._rng = rng
        self._locked = locked
        self._limit = operator.dim - (0 if locked is None else locked.shape[0])
        self._most = self._limit + 1 if most is None else min(most, self._limit + 1)
        self._rows = Basis(
            min(capacity + 1, self._most), operator.dim, dtype=operator.dtype, device=operator.device, storage=storage
        )
        self._fresh: list[Tensor] = []
        self._kept_values = torch.empty(0, dtype=torch.float64)
        self._coupling = torch.empty(0, dtype=torch.float64)
        self.diagonal = torch.empty(0, dtype=torch.float64)
        self.offdiagonal = torch.empty(0, dtype=torch.float64)
        self.steps = 0
        self._rows.put(0, self._orthonormal(start.to(operator.device, operator.dtype), 0))

    @property
    def basis(self) -> Tensor:
        """The orthonormal rows that T belongs to, shape (m, p)."""
        return self._rows.rows(self.steps)

    @property
    def full(self) -> bool:
        """Whether there is no room for another step, now or by growing: time for :meth:`restart`."""
        return not self.exhausted and self.steps + 2 > self._room(self.steps + 2)

    @property
    def peak_bytes(self) -> int:
        """Most memory that the basis took."""
        return self._rows.peak_bytes

    @property
    def exhausted(self) -> bool:
        """Whether the basis spans all there is, so that T holds the whole (unlocked) spectrum."""
        return self.steps >= self._limit

    def advance(self, steps: int) -> None:
        """Take up to ``steps`` more steps, then look once for breakdowns and non-finite values.

        Raises:
            NonFiniteProductError: When a product held NaN or infinity.
        """
        advance_together([self], steps)

    def begin(self, steps: int) -> int:
        """Make room for up to ``steps`` more steps; returns how many are left to take."""
        steps = max(min(steps, self._limit - self.steps), 0)
        if steps:
            room = self._room(self.steps + steps + 1)
            if room > len(self._rows):
                self._rows.grow(room, self.steps + 1)
            steps = max(min(steps, room - self.steps - 1), 0)
        self._fresh = []
        return steps

    def current(self) -> Tensor:
        """The basis vector whose product the next step needs."""
        return self._rows[self.steps + len(self._fresh)]

    def absorb(self, image: Tensor) -> None:
        """Take one step with the product of :meth:`current`; nothing is read back from the device."""
        j = self.steps + len(self._fresh)
        # In exact arithmetic the last two vectors are all there is to remove; the pass over the whole basis then
        # is the second one, and the memory traffic half of that of two whole passes.
        # Behind a restart all kept vectors are predecessors.
        residual, near = self._project_out(image, 0 if j == len(self._kept_values) else max(j - 1, 0), j + 1)
        residual, whole = self._project_out(residual, 0, j + 1)
        beta = torch.linalg.vector_norm(residual)
        self._fresh.append(torch.stack([near[-1] + whole[j], beta]))
        self._rows.put_normalised(j + 1, residual, beta)

    def settle(self) -> None:
        """Look once at the steps since :meth:`begin`, for breakdowns and non-finite values."""
        if self._fresh:
            scalars = torch.stack(self._fresh, dim=1).to("cpu", torch.float64)
            self._fresh = []
            self._accept(scalars)

    def _accept(self, scalars: Tensor) -> None:
        """Append the new entries of T; cut at a breakdown and restart behind it."""
        if not bool(torch.isfinite(scalars).all()):
            raise NonFiniteProductError("a matrix-vector product held NaN or infinity")
        diagonal = torch.cat([self.diagonal, scalars[0]])
        offdiagonal = torch.cat([self.offdiagonal, scalars[1]])
        known = torch.cat([diagonal.abs(), offdiagonal, self._kept_values.abs()])
        # A residual this small is rounding of the product: it carries no direction any more.
        noise = 32 * torch.finfo(self.operator.dtype).eps * float(known.max())
        old, kept = len(self.diagonal), len(self._kept_values)
        fresh = offdiagonal[old:] <= noise
        broken = int(fresh.nonzero()[0]) + old if bool(fresh.any()) else None
        tail = len(diagonal) if broken is None else broken + 1
        self.steps = kept + tail
        self.diagonal, self.offdiagonal = diagonal[:tail], offdiagonal[:tail].clone()
        if broken is not None or self.exhausted:
            self.offdiagonal[-1] = 0.0
        if broken is not None and not self.exhausted:
            vector = unit_gaussian(self.operator.dim, self._rng).to(self.operator.device, self.operator.dtype)
            self._rows.put(self.steps, self._orthonormal(vector, self.steps))

    def restart(self, values: Tensor, rotation: Tensor) -> None:
        """Go on from some Ritz vectors and the last residual (thick restart: Wu and Simon 2000).

        T becomes the diagonal of the Ritz values, bordered by what each of them has along the residual, and the
        tridiagonal of the steps to come.

        Args:
            values: (l,), Ritz values to keep.
            rotation: (m, l), float64, their coordinates in the basis.
        """
        last = self._rows[self.steps]
        self._rows.rotate(rotation)
        self._coupling = float(self.offdiagonal[-1]) * rotation[-1]
        self._kept_values = values.clone()
        self.steps = len(values)
        self.diagonal = self.offdiagonal = torch.empty(0, dtype=torch.float64)
        self._rows.put(self.steps, self._orthonormal(last, self.steps))

    def combined(self, rotation: Tensor) -> Tensor:
        """Vectors with these coordinates in the basis, (p, l)."""
        return self._rows.combined(rotation)

    def _orthonormal(self, vector: Tensor, rows: int) -> Tensor:
        """A vector orthogonalised twice against all rows, of unit norm."""
        for _ in range(2):
            vector, _ = self._project_out(vector, 0, rows)
        return vector.div(torch.linalg.vector_norm(vector))

    def _project_out(self, vector: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
        """One pass of block classical Gram-Schmidt against some rows; returns the vector and its coefficients."""
        if self._locked is not None:
            vector = torch.addmv(vector, self._locked.T, self._locked @ vector, alpha=-1)
        return self._rows.project_out(vector, first, last)

    def _room(self, rows: int) -> int:
        """Number of rows that can be allocated. While the basis grows, old and new rows must fit into memory."""
        have = len(self._rows)
        if rows <= have:
            return have
        grown = min(max(rows, have * 3 // 2), self._limit + 1)
        return max(have, min(grown, self._most if self._most > self._limit else self._most - have))

    def projected(self) -> Tensor:
        """T in CPU float64, shape (m, m): the projection of A on the basis."""
        kept = len(self._kept_values)
        matrix = torch.zeros(self.steps, self.steps, dtype=torch.float64)
        matrix[:kept, :kept] = torch.diag(self._kept_values)
        if self.steps > kept:
            matrix[kept:, kept:] = tridiagonal(self.diagonal, self.offdiagonal)
            matrix[kept, :kept] = matrix[:kept, kept] = self._coupling
        return matrix


def advance_together(processes: Sequence[Lanczos], steps: int) -> None:
    """Advance several processes of one operator in lockstep: one ``matmat`` for each step of them all.

    Raises:
        NonFiniteProductError: When a product held NaN or infinity.
    """
    left = [process.begin(steps) for process in processes]
    for step in range(max(left, default=0)):
        active = [process for process, count in zip(processes, left, strict=True) if count > step]
        if len(active) == 1:
            active[0].absorb(active[0].operator.matvec(active[0].current()))
            continue
        images = active[0].operator.matmat(torch.stack([process.current() for process in active], dim=1))
        for process, image in zip(active, images.unbind(1), strict=True):
            process.absorb(image)
    for process in processes:
        process.settle()


def tridiagonal(diagonal: Tensor, offdiagonal: Tensor) -> Tensor:
    """The symmetric tridiagonal matrix with these diagonals, shape (m, m); extra off-diagonal entries are ignored.

    >>> tridiagonal(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.0]))
    tensor([[1., 3.],
            [3., 2.]])
    """
    off = offdiagonal[: len(diagonal) - 1]
    return torch.diag(diagonal) + torch.diag(off, 1) + torch.diag(off, -1)
