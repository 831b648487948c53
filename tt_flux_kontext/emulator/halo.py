"""Rows of neighbours around a map that is split over chips."""

import math
from collections.abc import Sequence

import torch

from .checks import check, check_layout, describe
from .collectives import checked_axis, exchanged
from .semaphores import GlobalSemaphore, take_turn
from .tensor import Tensor
from .types import Layout, MemoryConfig, Topology


def neighbor_pad_async(
    input_tensor: Tensor,
    dim: Sequence[int],
    padding_left: Sequence[int],
    padding_right: Sequence[int],
    padding_mode: str,
    cluster_axis: Sequence[int],
    neighbor_semaphore: Sequence[GlobalSemaphore],
    barrier_semaphore: Sequence[GlobalSemaphore],
    *,
    num_links: Sequence[int] | None = None,
    memory_config: MemoryConfig | None = None,
    topology: Topology = Topology.Linear,
) -> Tensor:
    """A chip's row-major part between rows of its neighbours: the last ``padding_left`` of the chip before it on the
    axis, and the first ``padding_right`` of the chip after. Where there is no neighbour, they are zeros.

    Rows are those of dimension ``dim``; it, as all that is a sequence here, is one. Raises RuntimeError for the last
    dimension, more rows than a chip has, tiles, modes other than "zeros", an axis of one chip, a ring, more links than
    the dimensions before ``dim`` have indices, and semaphores used twice in a row.
    """
    op, x = "neighbor_pad_async", input_tensor
    given = (dim, padding_left, padding_right, cluster_axis, neighbor_semaphore, barrier_semaphore, num_links or [1])
    check(all(len(values) == 1 for values in given), op, "only one dimension at a time is emulated")
    (d,), (before,), (after,), (axis,), _, _, (links,) = given
    axis = checked_axis(op, x, axis)
    check_layout(op, Layout.ROW_MAJOR, input_tensor=x)
    rank = len(x.shape)
    check(0 <= d < rank - 1, op, f"only non-last dimensions can be padded, got {d} of {describe(x)}")
    check(max(before, after) <= x.shape[d], op, f"padding {before} or {after} exceeds dimension {d} of {describe(x)}")
    check(padding_mode == "zeros", op, f"only padding mode 'zeros' is emulated, got {padding_mode!r}")
    check(topology is Topology.Linear, op, f"only Topology.Linear is emulated, got {topology}")
    work = math.prod(x.shape[:d] if d else x.shape[1:-1])
    check(0 < links <= work, op, f"{links} links have not enough work in {describe(x)}")
    take_turn(op, x.device(), [*neighbor_semaphore, *barrier_semaphore])

    def pad(parts):
        nothing = torch.zeros_like(parts[0])
        neighbours = [nothing, *parts, nothing]
        tops = [part.narrow(d, part.shape[d] - before, before) for part in neighbours[:-2]]
        bottoms = [part.narrow(d, 0, after) for part in neighbours[2:]]
        return [torch.cat(rows, d) for rows in zip(tops, parts, bottoms)]

    return exchanged(x, axis, pad, memory_config)
