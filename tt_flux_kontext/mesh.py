"""Many chips: which axis of the mesh splits what of a model, and the collectives along it.

A mesh has rows and columns of chips. Along one axis a model may split its sequence (sequence parallelism, SP: each chip
has other tokens), along the other its features (tensor parallelism, TP: each chip has other heads, and other columns
or rows of matrices). An axis of one chip, or one that splits nothing, has no collectives, so that the code of many
chips is that of one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tt_flux_kontext import program_configs
from tt_flux_kontext.backend import ttnn


@dataclass(frozen=True)
class System:
    """Chips and the Ethernet between them.

    Attributes:
        meshes: (rows, columns) that all chips can be seen as; the first one is opened.
        rings: lengths of axes whose last chip has a cable to the first one.
        links: between neighbours, as many as programs may use.
    """

    meshes: tuple[tuple[int, int], ...] = ((1, 1),)
    rings: tuple[int, ...] = ()
    links: int = 1


# By the names of TT-NN's ClusterType. A system that is not here opens one chip. N300 and T3K have two links between
# neighbours, but one of them carries the commands for chips without PCIe (tt-metal pull request 45352): programs that
# use it too hang (issue 25347), though the mock device takes them.
SYSTEMS = {
    "N300": System(((1, 2),), links=1),
    "T3K": System(((2, 4), (1, 8)), rings=(8,), links=1),
    "GALAXY": System(((8, 4), (4, 8)), rings=(4, 8), links=4),
    "P300": System(((1, 2),), links=2),
    "P150_X4": System(((1, 4), (2, 2)), rings=(4,), links=4),
}

# Of the norm that chips share: tiles of a chip's row at most, since of 64 to 72 it would hold more than a core's L1;
# and links, since of five rows of tiles it would deal out its cores over four wrongly, and hang.
_NORM_TILES, _NORM_LINKS = 56, 2
# Packets that each sending core of a product has room for: 0.8 MB of a core's L1 where eight share a link.
_PACKETS = 24


def system() -> System:
    """The one that TT-NN finds."""
    return SYSTEMS.get(ttnn.cluster.get_cluster_type().name, System())


class Mesh:
    """An open device, and what the collectives of all models on it share: semaphores and persistent buffers.

    There are two sets of each, used in turns, since a collective may begin while a neighbour still ends the one before.

    Attributes:
        turns: keys of what has its second set next.
        used: keys of what was used since somebody emptied it.
    """

    def __init__(self, device: "ttnn.MeshDevice | None"):
        """None: one chip that isn't there, for what has shapes only."""
        self.device = device
        self.shape = tuple(device.shape) if device else (1, 1)
        self.system = system() if self.chips > 1 else System()
        self.turns: frozenset[tuple] = frozenset()
        self.used: set[tuple] = set()
        self._semaphores: dict[tuple, tuple] = {}
        self._buffers: dict[tuple, tuple] = {}

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    def split(self, chips: Sequence[int], width: int = 0) -> "Parallel":
        """`chips`: (SP, TP), by which tokens and features are split, the lengths of both axes.

        `width` as of `Parallel`. Raises `ValueError` for chips that the mesh hasn't.
        """
        ways = {self.shape[::-1]: (1, 0), self.shape: (0, 1)}
        if tuple(chips) not in ways:
            known = " or ".join(map(str, sorted(ways, reverse=True)))
            raise ValueError(
                f"A mesh of {self.shape[0]} x {self.shape[1]} chips can't be split by {tuple(chips)} for tokens and "
                f"features, only by {known}. Open another form of the mesh, or parts of it, for another split."
            )
        return Parallel(self, *ways[tuple(chips)], width)

    def tokens(self) -> "Parallel":
        """Tokens over the longest axis, the same on all chips along the other one."""
        return Parallel(self, self.shape.index(max(self.shape)))

    def features(self, divides: Callable[[int], bool]) -> "Parallel":
        """Features over the longest axis that they divide by, the same on all chips along the other one."""
        for axis in sorted((0, 1), key=lambda axis: -self.shape[axis]):
            if divides(self.shape[axis]):
                return Parallel(self, None, axis)
        return Parallel(self)

    def semaphores(self, name: str, axis: int) -> list:
        """For the collective of that name along an axis."""
        grid = self.device.compute_with_storage_grid_size()
        cores = ttnn.CoreRange(ttnn.CoreCoord(0, 0), ttnn.CoreCoord(grid.x - 1, grid.y - 1))

        def make() -> list:
            return [ttnn.create_global_semaphore(self.device, ttnn.CoreRangeSet({cores}), 0) for _ in range(2)]

        return self._in_turns(self._semaphores, (name, axis), make)

    def buffer(self, name: str, shape: Sequence[int], dtype: "ttnn.DataType") -> "ttnn.Tensor":
        """In tiles, of no values; `name` tells apart what is in use at the same time."""

        def make() -> "ttnn.Tensor":
            return ttnn.empty(list(shape), dtype=dtype, layout=ttnn.TILE_LAYOUT, device=self.device)

        return self._in_turns(self._buffers, (name, *shape, dtype), make)

    def statistics_buffer(self, x: "ttnn.Tensor", axis: int, links: int) -> "ttnn.Tensor":
        """For what a norm of `x` exchanges along an axis."""

        def make() -> "ttnn.Tensor":
            create = ttnn.experimental.dit_fused_distributed_layernorm_create_stats_buffer
            return create(x, axis, self.device, num_links=links)

        return self._in_turns(self._buffers, ("statistics", axis, *x.shape), make)

    def free_buffers(self) -> None:
        """Another edit may want others, of other shapes."""
        self._buffers.clear()

    def _in_turns(self, pairs: dict[tuple, tuple], key: tuple, make: Callable):
        """One of two things that `make` made, each time the other."""
        if key not in pairs:
            pairs[key] = make(), make()
        self.used.add(key)
        turn = key in self.turns
        self.turns ^= {key}
        return pairs[key][turn]


class Parallel:
    """The split of one model.

    Args:
        sp_axis: of the mesh, along which chips hold different tokens; None where all have them all.
        tp_axis: along which they hold different features.
        width: features of a residual stream that may be split along TP too; 0 for none.

    Attributes:
        sp, tp: chips along these axes, 1 where there is none.
        fused: whether each chip along TP has features of its own of the residual stream. Then norms exchange their
            statistics, and matrix products gather what they take, each in its one operation; else the stream, and what
            is made of it between products, is whole on each of these chips.
    """

    def __init__(self, mesh: Mesh, sp_axis: int | None = None, tp_axis: int | None = None, width: int = 0):
        self.mesh = mesh
        self.device = mesh.device
        self.width = width
        self.sp_axis, self.tp_axis = sp_axis, tp_axis
        self.sp, self.tp = (1 if axis is None else mesh.shape[axis] for axis in (sp_axis, tp_axis))
        # Pairs of tiles: around a ring, half of each block that products gather comes from either side.
        tiles, rest = divmod(width, ttnn.TILE_SIZE * self.tp)
        self.fused = self.tp > 1 and rest == tiles % 2 == 0 and 0 < tiles <= _NORM_TILES

    @property
    def key(self) -> list:
        """What the parameters on each chip depend on, as JSON has it."""
        return [list(self.mesh.shape), self.tp_axis if self.tp > 1 else None, self.fused]

    def features(self) -> "Parallel":
        """The same split of features, of what all chips along SP have whole."""
        return Parallel(self.mesh, None, self.tp_axis, self.width)

    def rows(self, tokens: int) -> int:
        """Rows of a chip that holds its share of tokens: whole tiles, where there are several chips."""
        return tokens if self.sp == 1 else math.ceil(tokens / (ttnn.TILE_SIZE * self.sp)) * ttnn.TILE_SIZE

    def scatter(self, x: torch.Tensor, dtype: "ttnn.DataType") -> "ttnn.Tensor":
        """Tokens [S, features] to the device, in tiles: each chip has its rows, [1, 1, rows(S), features].

        Rows that there are no tokens for are zeros, behind all others.
        """
        return self._in_tiles(x, dtype, self.device)

    def write(self, x: torch.Tensor, to: "ttnn.Tensor") -> None:
        """Tokens in the place of as many others that `scatter` put there."""
        ttnn.copy_host_to_device_tensor(self._in_tiles(x, to.dtype, None), to)

    def _in_tiles(self, x: torch.Tensor, dtype: "ttnn.DataType", device) -> "ttnn.Tensor":
        padded = torch.nn.functional.pad(x, (0, 0, 0, self.sp * self.rows(len(x)) - len(x)))
        mapper = self.mapper(self.sp_axis, 2)
        return ttnn.from_torch(
            padded[None, None], dtype=dtype, layout=ttnn.TILE_LAYOUT, device=device, mesh_mapper=mapper
        )

    def gather(self, x: "ttnn.Tensor") -> torch.Tensor:
        """The inverse of `scatter`, float32, with the rows behind all others."""
        step = math.prod(self.mesh.shape[1:]) if self.sp_axis == 0 else 1  # from one chip to the next along SP
        shards = ttnn.get_device_tensors(x)[: step * self.sp : step]
        return torch.cat([ttnn.to_torch(shard)[0, 0] for shard in shards]).float()

    def mapper(self, axis: int | None, dim: int):
        """For `ttnn.from_torch`: dimension `dim` over the chips along an axis, None where that is one chip."""
        if axis is None or self.mesh.shape[axis] == 1:
            return None
        placements = [ttnn.PlacementReplicate(), ttnn.PlacementReplicate()]
        placements[axis] = ttnn.PlacementShard(dim)
        config = ttnn.MeshMapperConfig(placements, ttnn.MeshShape(*self.mesh.shape))
        return ttnn.create_mesh_mapper(self.device, config)

    def sum(self, x: "ttnn.Tensor") -> "ttnn.Tensor":
        """The sum over TP of [1, 1, S, D]: on each of its chips, or of each the features that are its own."""
        if self.tp == 1:
            return x
        # A product that scatters too (minimal_matmul_strided_reduce_scatter_async) would hang on two chips, go around
        # rings alone, and save 1 to 3 % of a step on a Galaxy.
        along = {"cluster_axis": self.tp_axis}
        return ttnn.reduce_scatter(x, 3, **along) if self.fused else ttnn.all_reduce(x, **along)

    def all_gather(self, x: "ttnn.Tensor", dim: int) -> "ttnn.Tensor":
        """What the chips along TP have, side by side, on each of them."""
        return x if self.tp == 1 else ttnn.all_gather(x, dim, cluster_axis=self.tp_axis)

    def all_gather_rows(self, x: "ttnn.Tensor", dim: int = 2) -> "ttnn.Tensor":
        """What the chips along SP have, [B, H, rows, D], one below the other, on each of them."""
        return x if self.sp == 1 else ttnn.all_gather(x, dim, cluster_axis=self.sp_axis)

    def halo(self, x: "ttnn.Tensor", above: int, below: int) -> "ttnn.Tensor":
        """Rows [1, H, W, C], row-major, with the last ones of the chip before along SP above and the next one's below.

        On the first chip zeros are above, on the last one below.
        """
        # No persistent output buffer: with one the op leaves out the barrier that keeps a neighbour from writing too
        # early (tt-metal pull request 55264).
        neighbour, barrier = self.mesh.semaphores("halo", self.sp_axis)
        return ttnn.experimental.neighbor_pad_async(
            x, [1], [above], [below], "zeros", [self.sp_axis], [neighbour], [barrier], topology=ttnn.Topology.Linear
        )

    def partition(self, x: "ttnn.Tensor", dim: int) -> "ttnn.Tensor":
        """Of a tensor that the chips along TP have whole, each its share."""
        return x if self.tp == 1 else ttnn.mesh_partition(x, dim, cluster_axis=self.tp_axis)

    def product(self, x: "ttnn.Tensor") -> dict:
        """Arguments of a matrix product that gathers its input along TP, of which each chip has `x` [1, 1, S, D]."""
        _, _, rows, width = x.shape
        grid, links = self.device.compute_with_storage_grid_size(), self.mesh.system.links
        return {
            "config": program_configs.gathered_product(self.device, width),
            "persistent_output_buffer": self.mesh.buffer("gathered", (1, 1, rows, self.tp * width), x.dtype),
            "multi_device_global_semaphore": self.mesh.semaphores("product", self.tp_axis),
            "num_links": links,
            "cluster_axis": self.tp_axis,
            "topology": ttnn.get_usable_topology(x, cluster_axis=self.tp_axis),
            "num_workers_per_link": math.ceil(grid.x / links),
            "num_buffers_per_channel": _PACKETS,
        }

    def norm(self, x: "ttnn.Tensor") -> dict:
        """Arguments of a norm over the features of all chips along TP, of which each has `x` [1, 1, S, D]."""
        links = min(self.mesh.system.links, _NORM_LINKS)
        return {
            "persistent_output_buffer": self.mesh.statistics_buffer(x, self.tp_axis, links),
            "multi_device_global_semaphore": self.mesh.semaphores("norm", self.tp_axis),
            "num_preferred_links": links,
            "cluster_axis": self.tp_axis,
            "mesh_device": self.device,
            "topology": ttnn.get_usable_topology(x, cluster_axis=self.tp_axis),
        }

    def ring(self, x: "ttnn.Tensor") -> dict:
        """Arguments of a collective of `x` that goes along SP, in a ring where cables close it."""
        return {
            "multi_device_global_semaphore": self.mesh.semaphores("ring", self.sp_axis),
            "num_links": self.mesh.system.links,
            "cluster_axis": self.sp_axis,
            "mesh_device": self.device,
            "topology": ttnn.get_usable_topology(x, cluster_axis=self.sp_axis),
        }

    @property
    def waits_for_keys(self) -> bool:
        """Whether ring attention would wait longer for bfloat16 keys and values than it computes with them.

        At 8704 tokens a Wormhole chip attends to those of another chip in 1.4 times the time that they take over a
        link: only where one link brings those of three chips and more do they come too late.
        """
        return self.sp > 2 and self.mesh.system.links == 1

    def buffer(self, name: str, like: "ttnn.Tensor") -> "ttnn.Tensor":
        """Room for what `all_gather_rows` of `like` gives, as `Mesh.buffer` has it."""
        batch, heads, rows, size = like.shape
        return self.mesh.buffer(name, (batch, heads, self.sp * rows, size), like.dtype)
