"""What TT-NN did during a graph capture: its device operations, and the memory they took."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

_TILE_BYTES = {"BFLOAT16": 2048, "FLOAT32": 4096, "BFLOAT8_B": 1088, "BFLOAT4_B": 576, "UINT32": 4096}
_MATMULS = ("MatmulDeviceOperation", "MinimalMatmulDeviceOperation", "Conv2dDeviceOperation")
_ATTENTIONS = ("SDPAOperation", "JointSDPADeviceOperation")
_PARTIAL_READS = ("SliceDeviceOperation", "PaddedSliceDeviceOperation", "EmbeddingsDeviceOperation")
_PARTIAL_WRITES = ("SliceWriteDeviceOperation",)


@dataclass(frozen=True)
class Place:
    """A tensor as an operation sees it."""

    shape: tuple[int, ...]
    dtype: str
    tiled: bool
    dram: bool

    @property
    def bytes(self) -> int:
        """Padded to whole tiles."""
        *outer, rows, columns = (1, 1, *self.shape)[-max(2, len(self.shape)) :]
        if self.tiled:
            return math.prod(outer) * math.ceil(rows / 32) * math.ceil(columns / 32) * _TILE_BYTES[self.dtype]
        return math.prod(outer) * rows * columns * _TILE_BYTES[self.dtype] // 1024


@dataclass(frozen=True)
class Operation:
    """A device operation: a program that runs on the chip.

    Attributes:
        name: TT-NN's, such as MatmulDeviceOperation.
        call: the function of TT-NN that led to it, such as ttnn.linear.
        fidelity: LoFi ... HiFi4 where it has one, else HiFi4.
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
        """Multiplications and additions of the matrix engine."""
        if self.kind in ("matmul", "convolution"):
            inner = self.inputs[1].shape[-2]
            return 2 * inner * sum(math.prod(out.shape) for out in self.outputs)
        if self.kind == "attention":
            query, key = (tensor.shape for tensor in self.inputs[:2])
            rows, columns = query[2], key[2]
            if len(self.inputs) >= 6:  # the joint sequence: its query, key and value come after the first three
                rows, columns = rows + self.inputs[3].shape[2], columns + self.inputs[4].shape[2]
            return 4 * query[0] * query[1] * rows * columns * query[3]
        return 0

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


@dataclass(frozen=True)
class Peaks:
    """Most memory in use: bytes of DRAM above the capture's start; bytes of a core's L1, buffers and programs."""

    dram: int
    l1: int


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
            if start["params"]["name"].endswith("Operation"):
                found.append((start, node))
    return [_operation(start, end, places, inputs, calls) for start, end in found]


def peaks(capture: Sequence[dict]) -> Peaks:
    used = {"DRAM": 0, "L1": 0}
    most = {"DRAM": 0, "L1": 0}
    programs = 0
    for node in capture:
        kind, parameters = node["node_type"], node["params"] or {}
        if kind in ("buffer_allocate", "buffer_deallocate") and parameters.get("type") in used:
            # L1 is counted on one core, which is a bank.
            size = int(parameters["size" if parameters["type"] == "DRAM" else "max_size_per_bank"])
            used[parameters["type"]] += size if kind == "buffer_allocate" else -size
        elif kind == "circular_buffer_allocate" and parameters["globally_allocated"] == "0":
            programs += int(parameters["size"])
        elif kind == "circular_buffer_deallocate_all":
            programs = 0
        most["DRAM"] = max(most["DRAM"], used["DRAM"])
        most["L1"] = max(most["L1"], used["L1"] + programs)
    return Peaks(dram=most["DRAM"], l1=most["L1"])


@cache
def _place(shape: str, dtype: str, layout: str, buffer_type: int | None) -> Place:
    return Place(
        shape=tuple(int(size) for size in re.findall(r"\d+", shape)),
        dtype=dtype.removeprefix("DataType::"),
        tiled=layout == "Layout::TILE",
        dram=buffer_type == 0,
    )


def _operation(start: dict, end: dict, places: dict, inputs: dict, calls: dict) -> Operation:
    fidelity = re.search(r"math_fidelity=(\w+)", str(start["arguments"]))
    return Operation(
        name=start["params"]["name"],
        call=calls[start["counter"]],
        inputs=tuple(places[i] for i in inputs.get(start["counter"], [])),
        outputs=tuple(places[i] for i in end["connections"] if i in places),
        fidelity=fidelity[1] if fidelity else "HiFi4",
    )
