"""The names TT-NN code passes around: enums, shapes, grids and kernel configurations (TT-NN 0.81.1)."""

import math
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

TILE_SIZE = 32
"""Rows and columns of a tile, the unit of storage and of computation."""


class DataType(Enum):
    BFLOAT16 = auto()
    FLOAT32 = auto()
    BFLOAT8_B = auto()
    BFLOAT4_B = auto()
    UINT32 = auto()

    @property
    def is_block_float(self) -> bool:
        return self in (DataType.BFLOAT8_B, DataType.BFLOAT4_B)

    @property
    def tile_bytes(self) -> int:
        """Bytes of one 32 x 32 tile; block floats add one exponent byte per 16 values."""
        return {"BFLOAT16": 2048, "BFLOAT8_B": 1088, "BFLOAT4_B": 576}.get(self.name, 4096)

    @property
    def element_bytes(self) -> int:
        """Bytes of one element of a row-major tensor (block floats have no row-major form)."""
        return 2 if self is DataType.BFLOAT16 else 4


bfloat16, float32, uint32 = DataType.BFLOAT16, DataType.FLOAT32, DataType.UINT32
bfloat8_b, bfloat4_b = DataType.BFLOAT8_B, DataType.BFLOAT4_B


class Layout(Enum):
    ROW_MAJOR = auto()
    TILE = auto()


ROW_MAJOR_LAYOUT, TILE_LAYOUT = Layout.ROW_MAJOR, Layout.TILE


class StorageType(Enum):
    HOST = auto()
    DEVICE = auto()


class DumpTensorMode(Enum):
    """What of a tensor on several hosts a file gets; here there is one host."""

    DISTRIBUTED_GATHER = auto()
    LOCAL = auto()


class BufferType(Enum):
    DRAM = auto()
    L1 = auto()


class TensorMemoryLayout(Enum):
    INTERLEAVED = auto()
    HEIGHT_SHARDED = auto()
    WIDTH_SHARDED = auto()
    BLOCK_SHARDED = auto()


@dataclass(frozen=True)
class MemoryConfig:
    memory_layout: TensorMemoryLayout = TensorMemoryLayout.INTERLEAVED
    buffer_type: BufferType = BufferType.DRAM


DRAM_MEMORY_CONFIG = MemoryConfig()
L1_MEMORY_CONFIG = MemoryConfig(buffer_type=BufferType.L1)


class Arch(Enum):
    WORMHOLE_B0 = auto()
    BLACKHOLE = auto()


class Shape(tuple):
    """A tensor's shape: a tuple that also equals the list of its sizes, as TT-NN's does."""

    def __eq__(self, other) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, (tuple, list)) else NotImplemented

    __hash__ = tuple.__hash__

    def __repr__(self) -> str:
        return f"Shape({list(self)})"

    @property
    def rank(self) -> int:
        return len(self)


class MeshShape(tuple):
    """Rows and columns of a mesh of chips: ``MeshShape(1, 1)`` or ``MeshShape([1, 1])``."""

    def __new__(cls, *sizes):
        return super().__new__(cls, sizes[0] if len(sizes) == 1 else sizes)

    def __repr__(self) -> str:
        return f"MeshShape({list(self)})"

    def mesh_size(self) -> int:
        return math.prod(self)


class FabricConfig(Enum):
    """What chips exchange data over, if anything; FABRIC_1D_RING uses the cables that close an axis to a ring."""

    DISABLED = auto()
    FABRIC_1D = auto()
    FABRIC_1D_RING = auto()


class Topology(Enum):
    """Which neighbours a collective goes through along an axis: a line's, or also from its last chip to its first."""

    Linear = auto()
    Ring = auto()


class CoreCoord(NamedTuple):
    x: int
    y: int


@dataclass(frozen=True)
class CoreRange:
    """A rectangle of cores; both corners belong to it."""

    start: CoreCoord
    end: CoreCoord


class CoreRangeSet(frozenset):
    """Rectangles of cores: ``CoreRangeSet({CoreRange(...)})``."""


@dataclass(frozen=True, kw_only=True)
class CoreGrid:
    x: int
    y: int


class MathFidelity(Enum):
    """How many passes the multipliers make over the mantissas; see ``formats`` for what each keeps."""

    Invalid = auto()
    LoFi = auto()
    HiFi2 = auto()
    HiFi3 = auto()
    HiFi4 = auto()


@dataclass(frozen=True, kw_only=True)
class WormholeComputeKernelConfig:
    """How a kernel computes. Without ``fp32_dest_acc_en`` sums are kept in bf16; ``packer_l1_acc`` shortens them."""

    math_fidelity: MathFidelity = MathFidelity.Invalid
    math_approx_mode: bool = True
    fp32_dest_acc_en: bool = False
    packer_l1_acc: bool = False
    dst_full_sync_en: bool = False


def init_device_compute_kernel_config(
    arch: Arch,
    device_kernel_config: WormholeComputeKernelConfig | None = None,
    *,
    math_fidelity: MathFidelity = MathFidelity.LoFi,
    math_approx_mode: bool = True,
    fp32_dest_acc_en: bool = False,
    packer_l1_acc: bool = False,
    dst_full_sync_en: bool = False,
) -> WormholeComputeKernelConfig:
    """The given configuration, or one made of the keyword arguments. Both architectures share one class."""
    return device_kernel_config or WormholeComputeKernelConfig(
        math_fidelity=math_fidelity,
        math_approx_mode=math_approx_mode,
        fp32_dest_acc_en=fp32_dest_acc_en,
        packer_l1_acc=packer_l1_acc,
        dst_full_sync_en=dst_full_sync_en,
    )


class UnaryOpType(Enum):
    GELU = auto()
    GELU_TANH = auto()
    SILU = auto()
    SIGMOID = auto()
    TANH = auto()
    RELU = auto()
    RSQRT = auto()


class UnaryWithParam:
    """An activation to fuse: ``UnaryWithParam(op)``, ``(op, param)`` as two arguments, or ``((op, param))`` as one."""

    def __init__(self, op_type, *params):
        self.op_type, *self.params = op_type if isinstance(op_type, tuple) else (op_type, *params)


class GeluVariant(Enum):
    Accurate = auto()
    FastLut = auto()
    Tanh = auto()


@dataclass(kw_only=True)
class SDPAProgramConfig:
    compute_with_storage_grid_size: CoreCoord
    q_chunk_size: int
    k_chunk_size: int
    exp_approx_mode: bool | None = None
    max_cores_per_head_batch: int = 16


@dataclass(kw_only=True)
class Conv2dConfig:
    """What a convolution may choose. The fields after ``activation`` change no result here.

    TT-NN heeds ``output_layout`` only for maps too large for L1, which it cuts into slices; here none is.
    """

    weights_dtype: DataType | None = None
    activation: UnaryWithParam | None = None
    deallocate_activation: bool = False
    output_layout: Layout = Layout.TILE
    config_tensors_in_dram: bool = False
    shard_layout: TensorMemoryLayout | None = None
    act_block_h_override: int = 0
    enable_act_double_buffer: bool = False
    enable_weights_double_buffer: bool = False


@dataclass(kw_only=True)
class Conv2dSliceConfig:
    """Slices that a convolution's output is made in, which change no result here."""

    class SliceTypeEnum(Enum):
        L1Full = auto()
        DRAMSliceHeight = auto()
        DRAMSliceWidth = auto()

    slice_type: SliceTypeEnum
    num_slices: int


Conv2dDRAMSliceWidth = Conv2dSliceConfig.SliceTypeEnum.DRAMSliceWidth


@dataclass(kw_only=True)
class MinimalMatmulConfig:
    """Blocking of ``experimental.minimal_matmul``; changes speed on a chip and no result here."""

    M_block_size: int = 1
    K_block_size: int = 1
    N_block_size: int = 1
    subblock_h: int = 1
    subblock_w: int = 1
    compute_with_storage_grid_size: CoreCoord = CoreCoord(1, 1)
