"""Muon: momentum whose steps are orthogonalised, for the weight matrices and convolution kernels inside a network.

After Keller Jordan's Muon (https://kellerjordan.github.io/posts/muon/). torch.optim.Muon does the same in bfloat16,
which is slow on a CPU without bfloat16 instructions; this one works in float32, on all matrices of one shape at once.
"""

import torch

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Steps of spectral norm lr * sqrt(max(1, rows / columns)); a kernel is seen as [out, in * height * width].

    Args:
        params: of two or more axes.
        lr: step size.
        momentum: of the gradients, Nesterov's way.
        weight_decay: decoupled, per step lr * weight_decay.
    """

    def __init__(self, params, lr: float = 0.01, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.Tensor]] = {}
            for parameter in group["params"]:
                by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in by_shape.items():
                momenta = torch.stack([self._momentum(p, group["momentum"]).flatten(1) for p in parameters])
                rows, columns = momenta.shape[1:]
                rate = group["lr"] * max(1, rows / columns) ** 0.5
                for parameter, update in zip(parameters, orthogonalise(momenta)):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update.view(shape), alpha=rate)

    def _momentum(self, parameter: torch.Tensor, momentum: float) -> torch.Tensor:
        state = self.state[parameter]
        average = state.setdefault("momentum", torch.zeros_like(parameter))
        average.lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(average, momentum)


def orthogonalise(matrices: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """Matrices [n, rows, columns] with all singular values brought near 1, by Newton-Schulz iterations."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
