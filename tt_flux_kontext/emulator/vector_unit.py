"""Functions as the vector unit (SFPU) computes them: fp32 in, fp32 out; the input may be overwritten.

Next to an fp32 destination they are accurate to a few units in the last place, and torch's stand for them; next to a
bf16 destination the unit takes shorter approximations. Sources: TT-NN's kernels for Wormhole, whose results on
Tenstorrent's simulator these reproduce.
"""

import torch

_GELU_EDGES = torch.tensor([0.5, 1.0, 1.5, 2.0, 3.0])
_GELU_SLOPES = torch.tensor([0.1928, 0.4939, 0.6188, 0.6099, 0.5402, 0.5]).half().float()
_GELU_INTERCEPTS = torch.tensor([-0.00010443, -0.1604, -0.2796, -0.2635, -0.1194, 0.0]).half().float()


def gelu(x: torch.Tensor) -> torch.Tensor:
    """By the error function."""
    return torch.nn.functional.gelu(x)


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(x, approximate="tanh")


def gelu_table(x: torch.Tensor) -> torch.Tensor:
    """``x / 2`` and six straight lines in ``|x|``, whose coefficients are fp16: 1 % off."""
    magnitude = x.abs()
    segment = torch.bucketize(magnitude, _GELU_EDGES.to(x.device), right=True)
    lines = magnitude.mul_(_GELU_SLOPES.to(x.device)[segment]).add_(_GELU_INTERCEPTS.to(x.device)[segment])
    return lines.add_(x, alpha=0.5)


def silu(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.silu(x, inplace=True)


def silu_to_bf16(x: torch.Tensor) -> torch.Tensor:
    """For a bf16 destination."""
    return sigmoid_to_bf16(x).mul_(x)


def sigmoid_to_bf16(x: torch.Tensor) -> torch.Tensor:
    """For a bf16 destination: one Newton step of a reciprocal."""
    return reciprocal(exp_21f(-x).add_(1), steps=1)


def exp_21f(x: torch.Tensor) -> torch.Tensor:
    """``e^x`` to 1.7e-3: a parabola for the power's fraction, ``exp_21f`` of Moroz et al. 2022.

    https://doi.org/10.1109/MSP.2022.3157460
    """
    power = x.mul(1.4426950216293335).add_(127).clamp_(0, 255).mul_(2.0**23).to(torch.int32)  # 2^23 log2, biased
    fraction = (power & 0x7FFFFF).to(torch.float32)
    mantissa = fraction.mul(4.791750143340323e-15).add_(7.839635491371155e-08).mul_(fraction).add_(1.0017248)
    return _with_exponent_of(power, mantissa)


def reciprocal(x: torch.Tensor, steps: int) -> torch.Tensor:
    """``1 / x`` by a parabola in the mantissa and Newton steps: two are accurate to fp32."""
    bits = x.view(torch.int32)
    mantissa = ((bits & 0x7FFFFF) | 0x3F800000).view(torch.float32)
    estimate = mantissa.mul(0.32323250174522400).sub_(1.4545459747314453).mul_(mantissa).add_(2.1212124824523926)
    for _ in range(steps):
        estimate.addcmul_(estimate, 1 - mantissa * estimate)
    # The inverted exponent is one too large.
    return estimate.mul_((~bits & 0x7F800000).view(torch.float32)).mul_(0.5).copysign_(x)


def _with_exponent_of(bits: torch.Tensor, mantissa: torch.Tensor) -> torch.Tensor:
    merged = (mantissa.view(torch.int32) & 0x7FFFFF).bitwise_or_(bits & 0x7F800000)
    return merged.view(torch.float32)
