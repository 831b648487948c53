"""What TT-NN did during a graph capture: its device operations, and the memory they took."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

TILE = 32  # rows and columns
_TILE_BYTES = {"BFLOAT16": 2048, "FLOAT32": 4096, "BFLOAT8_B": 1088, "BFLOAT4_B": 576, "UINT32": 4096, "UINT8": 1024}
RING_ATTENTION, JOINT_ATTENTION = "RingJointSDPADeviceOperation", "JointSDPADeviceOperation"
GATHER_MATMUL, MATMUL_SCATTER = "AllGatherMinimalMatmulAsyncOp", "MinimalMatmulStridedReduceScatterAsync"
_MATMULS = ("MatmulDeviceOperation", "MinimalMatmulDeviceOperation", GATHER_MATMUL, MATMUL_SCATTER)
_ATTENTIONS = ("SDPAOperation", JOINT_ATTENTION, RING_ATTENTION)
_NORM = "DitFusedDistributedRmsnormDeviceOperation"
_GATHER, _BROADCAST = "AllGatherDeviceOperation", "AllBroadcastDeviceOperation"
_HALO = "NeighborPadAsyncDeviceOperation"
_SCATTERS = ("ReduceScatterDeviceOperation", "ReduceScatterMinimalDirectDeviceOperation")
_PARTIAL_READS = (
    "SliceDeviceOperation",
    "PaddedSliceDeviceOperation",
    "EmbeddingsDeviceOperation",
    "MeshPartitionDeviceOperation",
)
_PARTIAL_WRITES = ("SliceWriteDeviceOperation",)
_NO_FIDELITY = "HiFi4"


@dataclass(frozen=True)
class Place:
    """A tensor as an operation sees it."""

    shape: tuple[int, ...]
    dtype: str
    tiled: bool
    dram: bool

    @property
    def tiles(self) -> tuple[int, int]:
        """Rows and columns of tiles, with all matrices one below the other."""
        *outer, rows, columns = (1, 1, *self.shape)[-max(2, len(self.shape)) :]
        return math.prod(outer) * math.ceil(rows / TILE), math.ceil(columns / TILE)

    @property
    def bytes(self) -> int:
        """Padded to whole tiles."""
        if self.tiled:
            return math.prod(self.tiles) * _TILE_BYTES[self.dtype]
        return math.prod(self.shape) * _TILE_BYTES[self.dtype] // TILE**2


@dataclass(frozen=True)
class Operation:
    """A device operation: a program that runs on every chip of the mesh, each on its own tensors of the same shapes.

    Attributes:
        name: TT-NN's, such as MatmulDeviceOperation.
        call: the function of TT-NN that led to it, such as ttnn.linear.
        fidelity: LoFi ... HiFi4 where it has one, else HiFi4. Where TT-NN doesn't print its arguments: that of the last
            product before.
    """

    name: str
    call: str
    inputs: tuple[Place, ...]
    outputs: tuple[Place, ...]
    fidelity: str

    @property
    def kind(self) -> str:
        """`convolution`, `matmul`, `attention`, or `other` for what the matrix engine takes no part in."""
        if self.name == "Conv2dDeviceOperation":
            return "convolution"
        return "matmul" if self.name in _MATMULS else "attention" if self.name in _ATTENTIONS else "other"

    @property
    def flop(self) -> int:
        """Multiplications and additions of a chip's matrix engine."""
        if self.kind in ("matmul", "convolution"):
            inner = self.inputs[1].shape[-2]
            return 2 * inner * sum(math.prod(out.shape) for out in self.products)
        if self.kind == "attention":
            keys = sum(key.shape[2] for key in self.keys)
            return 4 * sum(math.prod(query.shape) for query in self.queries) * keys
        return 0

    @property
    def queries(self) -> tuple[Place, ...]:
        """Of attention: the queries, and those of the joint sequence where there is one."""
        return self._sequences[::3]

    @property
    def keys(self) -> tuple[Place, ...]:
        """Of attention: all that the queries meet. In ring attention those are the keys of all chips."""
        keys = self._sequences[1::3]
        if self.name != RING_ATTENTION:
            return keys
        gathered = self._around_the_ring[1][::2]
        return gathered + keys[len(gathered) :]

    @property
    def _sequences(self) -> tuple[Place, ...]:
        """Of attention: query, key, value, and then those of the joint sequence."""
        return self.inputs[: 6 if len(self.inputs) >= 6 else 3]

    @property
    def products(self) -> tuple[Place, ...]:
        """Outputs without those that a matrix product makes beside its own, to move data between chips."""
        return {GATHER_MATMUL: self.outputs[1:], MATMUL_SCATTER: self.outputs[:1]}.get(self.name, self.outputs)

    @property
    def dram_bytes(self) -> int:
        """Read and written, each input once."""
        read = sum(tensor.bytes for tensor in self.inputs if tensor.dram)
        written = sum(tensor.bytes for tensor in self.outputs if tensor.dram)
        if self.name in _PARTIAL_READS:
            read = sum(tensor.bytes for tensor in self.outputs)
        if self.name in _PARTIAL_WRITES:  # the second input is the target
            read, written = 0, self.inputs[0].bytes
        return read + written

    @property
    def chips(self) -> int:
        """How many exchange data in it: all along an axis of the mesh, or two neighbours; 1 where none do."""
        if self.name == _HALO:
            return 2
        part, whole = self._exchange
        return whole // part if part else 1

    @property
    def only_moves(self) -> bool:
        """Whether it does nothing but exchange data."""
        return self.name in (_GATHER, _BROADCAST, _HALO, *_SCATTERS)

    @property
    def link_bytes(self) -> int:
        """What a chip at the end of a line gets through its links. On a ring half of it comes from either side."""
        part, whole = self._exchange
        return whole - part

    @property
    def _exchange(self) -> tuple[int, int]:
        """Bytes of a chip's part and of all the parts; nothing where chips work alone."""
        first = self.inputs[0].bytes if self.inputs else 0
        if self.name in (_GATHER, GATHER_MATMUL):
            return first, self.outputs[0].bytes
        if self.name == _BROADCAST:
            return first, sum(out.bytes for out in self.outputs)
        if self.name in _SCATTERS:  # beside the result there is a buffer, twice the input or of another format
            return min(out.bytes for out in self.outputs if out.dtype == self.inputs[0].dtype), first
        if self.name == MATMUL_SCATTER:
            return self.outputs[-1].bytes, self.outputs[0].bytes
        if self.name == _NORM and len(self.outputs) > 1:  # statistics, so few that it doesn't matter whose they are
            return self.outputs[1].bytes // 2, self.outputs[1].bytes
        if self.name == RING_ATTENTION:
            return tuple(sum(tensor.bytes for tensor in tensors) for tensors in self._around_the_ring)
        if self.name == _HALO:  # half of the rows from either neighbour, or the only one from one
            rows = next(more - less for less, more in zip(self.inputs[0].shape, self.outputs[0].shape) if more > less)
            return first, first + (self.outputs[0].bytes - first) // rows * math.ceil(rows / 2)
        return 0, 0

    @property
    def _around_the_ring(self) -> tuple[tuple[Place, ...], tuple[Place, ...]]:
        """Of ring attention: the keys and values that it sends, and the room for those of all chips.

        A joint sequence that is whole on each chip is not sent.
        """
        own = self.inputs[1:3] + (self.inputs[4:6] if len(self.inputs) == 10 else ())
        return own, self.inputs[-len(own) :]


@dataclass(frozen=True)
class Peaks:
    """Most memory in use: bytes of DRAM above the capture's start; bytes of a core's L1, buffers and programs.

    `operations` are those of DRAM from the start of each device operation to the start of the next.
    """

    dram: int
    l1: int
    operations: list[int]


def operations(capture: Sequence[dict]) -> list[Operation]:
    """The device operations of a graph capture, in order."""
    found, places, inputs, calls = [], {}, {}, {}
    starts = []
    for node in capture:
        kind, parameters = node["node_type"], node["params"]
        if kind == "tensor" and "dtype" in parameters:
            places[node["counter"]] = _place(
                *(parameters.get(name) for name in ("shape", "dtype", "layout", "buffer_type"))
            )
            for user in node["connections"]:
                inputs.setdefault(user, []).append(node["counter"])
        elif kind == "function_start":
            starts.append(node)
            calls[node["counter"]] = next(
                (start["params"]["name"] for start in starts if start["params"]["name"].startswith("ttnn.")), ""
            )
        elif kind == "function_end":
            start = starts.pop()
            if "program_cache_hit" in start["params"]:
                found.append((start, node))
    done, fidelity = [], _NO_FIDELITY
    for start, end in found:
        done.append(_operation(start, end, places, inputs, calls, fidelity))
        if done[-1].kind == "matmul":
            fidelity = done[-1].fidelity
    return done


def peaks(capture: Sequence[dict]) -> Peaks:
    """Of one chip. On a mesh TT-NN reports a buffer once, since it lies at the same place on all chips, but programs
    chip by chip."""
    used = {"DRAM": 0, "L1": 0}
    most = {"DRAM": 0, "L1": 0}
    during = []
    programs = Counter()
    for node in capture:
        kind, parameters = node["node_type"], node["params"] or {}
        if kind in ("buffer_allocate", "buffer_deallocate") and parameters.get("type") in used:
            # L1 is counted on one core, which is a bank.
            size = int(parameters["size" if parameters["type"] == "DRAM" else "max_size_per_bank"])
            used[parameters["type"]] += size if kind == "buffer_allocate" else -size
        elif kind == "circular_buffer_allocate" and parameters["globally_allocated"] == "0":
            programs[parameters["device_id"]] += int(parameters["size"])
        elif kind == "circular_buffer_deallocate_all":
            programs.clear()
        elif kind == "function_start" and "program_cache_hit" in parameters:
            during.append(used["DRAM"])
        if during:
            during[-1] = max(during[-1], used["DRAM"])
        most["DRAM"] = max(most["DRAM"], used["DRAM"])
        most["L1"] = max(most["L1"], used["L1"] + max(programs.values(), default=0))
    return Peaks(most["DRAM"], most["L1"], during)


@cache
def _place(shape: str, dtype: str, layout: str, buffer_type: int | None) -> Place:
    return Place(
        shape=tuple(int(size) for size in re.findall(r"\d+", shape)),
        dtype=dtype.removeprefix("DataType::"),
        tiled=layout == "Layout::TILE",
        dram=buffer_type == 0,
    )


def _operation(start: dict, end: dict, places: dict, inputs: dict, calls: dict, last_fidelity: str) -> Operation:
    arguments = str(start["arguments"])
    fidelity = re.search(r"math_fidelity=(\w+)", arguments)
    hidden = last_fidelity if arguments.startswith("['<") else _NO_FIDELITY
    return Operation(
        name=start["params"]["name"],
        call=calls[start["counter"]],
        inputs=tuple(places[i] for i in inputs.get(start["counter"], [])),
        outputs=tuple(places[i] for i in end["connections"] if i in places),
        fidelity=fidelity[1] if fidelity else hidden,
    )
