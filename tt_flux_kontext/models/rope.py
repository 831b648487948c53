"""Rotary position embedding over three axes (RoFormer, arXiv:2104.09864; diffusers' FluxPosEmbed)."""

import torch

from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.mesh import Parallel
from tt_flux_kontext.models.weights import upload

THETA = 10000.0


def rope_tables(ids: torch.Tensor, axes_dims: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, float32 [S, sum of axes_dims], of position ids [S, axes]; each value stands twice, for its pair."""
    angles = []
    for axis, dim in enumerate(axes_dims):
        frequencies = THETA ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        angles.append(torch.outer(ids[:, axis].double(), frequencies))
    angles = torch.cat(angles, dim=-1).repeat_interleave(2, dim=-1)
    return angles.cos().float(), angles.sin().float()


def pair_rotation() -> torch.Tensor:
    """R [32, 32] with (x R)[2i] = -x[2i + 1] and (x R)[2i + 1] = x[2i]: a quarter turn of every pair in a tile."""
    rotation = torch.zeros(32, 32)
    even = torch.arange(0, 32, 2)
    rotation[even + 1, even] = -1
    rotation[even, even + 1] = 1
    return rotation


class Rope:
    """The tables of one sequence on the device: x cos + (x turn) sin rotates a head's features.

    They are float32: bfloat16 tables alone would give 1.2 times the error of torch in bfloat16, which rotates in
    float32 (computed in torch for 1024 x 1024 pixels).

    Args:
        ids: [S, axes], one row a token, chip by chip: as many whole tiles on each as `Parallel.scatter` gives it.
        axes_dims: features of a head that each axis takes; their sum is the head's size.

    Attributes:
        cos, sin: float32 [1, 1, rows of a chip to whole tiles, sum of axes_dims].
        turn: bfloat16 [1, 1, 32, 32], for every 32 features.
    """

    def __init__(self, ids: torch.Tensor, axes_dims: tuple[int, ...], parallel: Parallel):
        whole_tiles = torch.nn.functional.pad(ids, (0, 0, 0, -len(ids) % ttnn.TILE_SIZE))
        cos, sin = rope_tables(whole_tiles, axes_dims)
        self.cos, self.sin = parallel.scatter(cos, ttnn.float32), parallel.scatter(sin, ttnn.float32)
        self.turn = upload(pair_rotation()[None, None], parallel.device, ttnn.bfloat16)
