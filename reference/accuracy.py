"""How near two tensors are: the two figures of every accuracy claim, and the table of them."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

BAR = 1.25
"""Our relative RMSE over that of torch in bfloat16, at most."""


def pcc(out: torch.Tensor, reference: torch.Tensor) -> float:
    """Pearson's correlation coefficient. It sees neither a wrong scale nor a wrong offset: see `relative_rmse`."""
    out, reference = out.double().flatten(), reference.double().flatten()
    out, reference = out - out.mean(), reference - reference.mean()
    return float(out @ reference / (out.norm() * reference.norm()))


def relative_rmse(out: torch.Tensor, reference: torch.Tensor) -> float:
    """||out - reference|| / ||reference||, a fraction."""
    out, reference = out.double(), reference.double()
    return float((out - reference).norm() / reference.norm())


@dataclass(frozen=True)
class Accuracy:
    """One line of a table. The two errors are relative RMSE against torch in float32: ours, torch's in bfloat16."""

    module: str
    pcc: float
    error: float
    torch_error: float

    @property
    def ratio(self) -> float:
        return self.error / self.torch_error

    @classmethod
    def of(cls, module: str, out: torch.Tensor, reference: torch.Tensor, torch_bf16: torch.Tensor) -> "Accuracy":
        """Of our result, with those of torch in float32 and in bfloat16."""
        return cls(module, pcc(out, reference), relative_rmse(out, reference), relative_rmse(torch_bf16, reference))


def table(rows: Iterable[Accuracy]) -> str:
    """For people: a line each."""
    lines = [f"{'module':<44}{'PCC':>10}{'rel. RMSE':>11}{'torch bf16':>11}{'ratio':>7}"]
    lines += [f"{r.module:<44}{r.pcc:>10.6f}{r.error:>11.5f}{r.torch_error:>11.5f}{r.ratio:>7.2f}" for r in rows]
    return "\n".join(lines)
