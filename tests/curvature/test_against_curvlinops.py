"""The same matrices as curvlinops has, wherever its scaling and its autograd serve as a reference.

Left out: what it cannot run (a first layer in place, frozen parameters, fused attention), LayerNorm, whose second
derivative under vmap is wrong in torch 2.13, and its empirical Fisher matrix of losses with several targets a sample,
which counts each of them as a sample.
"""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from support.cases import case
from torch import Tensor, nn

from lightning_sloppy import fisher_spectrum, hessian_spectrum
from lightning_sloppy.curvature.cotangents import Fisher
from lightning_sloppy.curvature.double_backward import double_backward
from lightning_sloppy.curvature.fisher import FisherOperator
from lightning_sloppy.curvature.gauss_newton import GaussNewtonOperator
from lightning_sloppy.curvature.hessian import HessianOperator
from lightning_sloppy.curvature.kfac import kronecker_factors
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.linalg.operator import SymmetricOperator

with warnings.catch_warnings():
    # One of its dependencies scripts a function, which torch calls deprecated.
    warnings.simplefilter("ignore")
    try:
        import curvlinops
    except Exception as error:  # a torchvision beside it that is not for this torch ends in a RuntimeError
        pytest.skip(f"curvlinops is not here to compare with: {error}", allow_module_level=True)

CLASSES = [
    "softmax regression", "mlp", "in-place relu", "cnn", "tied", "twice", "elsewhere", "by keyword", "flipped",
    "class rows", "gru", "lstm",
]  # fmt: skip
OTHERS = ["linear regression", "mlp mse", "mlp bce", "sequence", "squeezed"]
LOSSES = {
    F.cross_entropy: nn.CrossEntropyLoss,
    F.mse_loss: nn.MSELoss,
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
}
THEIRS = {
    "hessian": curvlinops.HessianLinearOperator,
    "gauss-newton": curvlinops.GGNLinearOperator,
    "fisher": curvlinops.EFLinearOperator,
}


def ours(kind: str, objective: Objective, batches: list[tuple[Tensor, Tensor]]) -> SymmetricOperator:
    layout = ParameterLayout.of(objective.module)
    if kind == "fisher":
        return FisherOperator(objective, layout, batches, fisher=Fisher("empirical"))
    return {"hessian": HessianOperator, "gauss-newton": GaussNewtonOperator}[kind](objective, layout, batches)


def dense(kind: str, name: str) -> Tensor:
    this = case(name)
    with double_backward(this.module), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        operator = THEIRS[kind](
            this.module, LOSSES[this.loss](), list(this.parameters.values()), this.batches, check_deterministic=False
        )
        return operator @ torch.eye(this.dim, dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in ("hessian", "gauss-newton") for name in CLASSES + OTHERS]
    + [("fisher", name) for name in CLASSES],
)
def test_products_are_those_of_curvlinops(kind: str, name: str) -> None:
    this = case(name)
    with double_backward(this.module):
        found = ours(kind, Objective(this.module, this.loss), this.batches).dense()
    torch.testing.assert_close(found, dense(kind, name), atol=1e-11, rtol=1e-8)


IMAGES = nn.Sequential(
    nn.Conv2d(2, 3, 3, stride=2, padding=1),
    nn.ReLU(inplace=True),
    nn.Conv2d(3, 2, 2, bias=False),
    nn.Flatten(),
    nn.Linear(8, 2),
)
TOKENS = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), nn.Flatten(), nn.Linear(10, 2))
ROWS = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


@pytest.mark.parametrize("positions", ["expand", "reduce"])
@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.MSELoss(), nn.BCEWithLogitsLoss()], ids=repr)
@pytest.mark.parametrize(("module", "shape"), [(ROWS, (3,)), (TOKENS, (5, 3)), (IMAGES, (2, 5, 6))])
def test_kronecker_factors_are_those_of_curvlinops(module, shape, loss, positions) -> None:
    """Where positions are dimensions of their own; folded into the batch they are samples to curvlinops."""
    torch.manual_seed(0)
    module = module.double()
    targets = {
        "CrossEntropyLoss": lambda n: torch.randint(0, 2, (n,)),
        "MSELoss": lambda n: torch.randn(n, 2).double(),
        "BCEWithLogitsLoss": lambda n: torch.randint(0, 2, (n, 2)).double(),
    }[type(loss).__name__]
    batches = [(torch.randn(n, *shape).double(), targets(n)) for n in (4, 6)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        operator = curvlinops.KFACLinearOperator(
            module,
            loss,
            list(module.parameters()),
            batches,
            fisher_type="type-2",
            kfac_approx=positions,
            check_deterministic=False,
        )
        operator.compute_kronecker_factors()
    theirs = operator.state_dict()
    factors, _ = kronecker_factors(module, loss, batches, positions=positions)
    for (name, _), pair in zip(module.named_parameters(), factors, strict=True):
        layer, _, kind = name.rpartition(".")
        torch.testing.assert_close(pair[0], theirs["gradient_covariances"][layer], atol=1e-13, rtol=1e-9)
        if kind == "weight":
            torch.testing.assert_close(pair[1], theirs["input_covariances"][layer], atol=1e-13, rtol=1e-9)


def test_largest_eigenvalue_in_float32() -> None:
    """A network of 20 hidden units on 10 samples, in single precision as people measure it."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 20), nn.Tanh(), nn.Linear(20, 2))
    batch = (torch.randn(10, 3), torch.randint(0, 2, (10,)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        theirs = [
            THEIRS[kind](module, nn.CrossEntropyLoss(), list(module.parameters()), [batch]) @ torch.eye(122)
            for kind in ("hessian", "fisher")
        ]
    for found, matrix in zip(
        (hessian_spectrum(module, [batch], F.cross_entropy, k=1), fisher_spectrum(module, [batch], F.cross_entropy)),
        theirs,
        strict=True,
    ):
        assert found.largest == pytest.approx(float(torch.linalg.eigvalsh(matrix.double())[-1]), rel=1e-4)
