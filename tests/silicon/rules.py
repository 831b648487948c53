"""How near to the kernels' result another one must come."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from reference.accuracy import relative_rmse

NEAREST = 1.2e-3  # two results that are each rounded to bfloat16 once (1.7e-3), mostly to the same side
SIGNIFICANT = 3e-4  # rounding alone makes no bias beyond this in the fewest values that a vector has


@dataclass(frozen=True)
class Comparison:
    """A result beside the kernels' one. Errors are relative RMSE against torch in float32, biases those of scale.

    Attributes:
        kernel_error, error: of the kernels' result, and of the one in question.
        difference: relative RMSE between the two.
        kernel_bias, bias: by how much too large each result is, as a fraction.
    """

    kernel_error: float
    error: float
    difference: float
    kernel_bias: float
    bias: float

    @classmethod
    def of(cls, kernel: torch.Tensor, out: torch.Tensor, reference: torch.Tensor) -> "Comparison":
        return cls(
            kernel_error=relative_rmse(kernel, reference),
            error=relative_rmse(out, reference),
            difference=relative_rmse(out, kernel),
            kernel_bias=bias(kernel, reference),
            bias=bias(out, reference),
        )


def bias(out: torch.Tensor, reference: torch.Tensor) -> float:
    """By how much the scale of `out` is too large."""
    out, reference = out.double(), reference.double()
    return float((out - reference) @ reference / (reference @ reference))


@dataclass(frozen=True)
class Rule:
    words: str
    holds: Callable[[Comparison], bool]


def _same_sign(c: Comparison) -> bool:
    return abs(c.kernel_bias) < SIGNIFICANT or c.kernel_bias * c.bias > 0


SAME = Rule("every bit the same", lambda c: c.difference == 0)
NEAR = Rule(f"difference at most {NEAREST}", lambda c: c.difference <= NEAREST)
HALF = Rule(
    "difference at most half of the kernels' error, scale wrong in the same direction",
    lambda c: c.difference <= 0.5 * c.kernel_error and _same_sign(c),
)
LIKE = Rule("error 0.8 to 1.25 times the kernels'", lambda c: 0.8 <= c.error / c.kernel_error <= 1.25)
AT_MOST = Rule("error at most the kernels'", lambda c: c.error <= c.kernel_error)
