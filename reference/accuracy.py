"""How near two tensors are: the two figures of every accuracy claim."""

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
