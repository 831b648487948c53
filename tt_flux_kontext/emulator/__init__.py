"""Tenstorrent's ``ttnn`` library, as far as its names go here, computed by torch: ``import ... as ttnn``.

Argument names, defaults, shapes, dtypes and refusals are those of TT-NN 0.81.1; values carry the number formats and the
rounding of the hardware (``formats``), memory is counted as on the chosen system (``device``, ``configure``). Where
TT-NN would read freed memory or go wrong silently, the emulator refuses.
"""

from . import cluster, experimental, transformer
from .collectives import all_gather, all_reduce, get_usable_topology, mesh_partition, reduce_scatter
from .convolution import conv2d
from .device import (
    MeshDevice,
    close_mesh_device,
    configure,
    get_memory_view,
    get_num_devices,
    open_mesh_device,
    set_fabric_config,
    synchronize_device,
)
from .distribution import (
    MeshComposerConfig,
    MeshMapperConfig,
    PlacementReplicate,
    PlacementShard,
    create_mesh_composer,
    create_mesh_mapper,
)
from .eltwise import add, addcmul, gelu, mul, multiply, relu, sigmoid, silu, subtract, tanh
from .group_normalization import (
    determine_expected_group_norm_dram_grid_size,
    dram_group_norm_params_from_torch,
    group_norm,
)
from .matmul import linear, matmul
from .mesh import get_device_tensors
from .moments import mean, var
from .movement import concat, embedding, fill_implicit_tile_padding, pad, permute, reshape, slice, upsample
from .normalization import layer_norm, rms_norm, softmax
from .semaphores import create_global_semaphore
from .tensor import Tensor, deallocate, is_tensor_storage_on_device
from .trace import MeshTraceId, begin_trace_capture, end_trace_capture, execute_trace, release_trace
from .trace import record_operations as _record_operations
from .transfer import (
    copy_host_to_device_tensor,
    dump_tensor,
    empty,
    from_device,
    from_torch,
    load_tensor,
    to_device,
    to_layout,
    to_torch,
    typecast,
    zeros,
)
from .types import (
    DRAM_MEMORY_CONFIG,
    L1_MEMORY_CONFIG,
    ROW_MAJOR_LAYOUT,
    TILE_LAYOUT,
    TILE_SIZE,
    Arch,
    BufferType,
    Conv2dConfig,
    Conv2dDRAMSliceWidth,
    Conv2dSliceConfig,
    CoreCoord,
    CoreGrid,
    CoreRange,
    CoreRangeSet,
    DataType,
    DumpTensorMode,
    FabricConfig,
    GeluVariant,
    Layout,
    MathFidelity,
    MemoryConfig,
    MeshShape,
    MinimalMatmulConfig,
    SDPAProgramConfig,
    Shape,
    StorageType,
    TensorMemoryLayout,
    Topology,
    UnaryOpType,
    UnaryWithParam,
    WormholeComputeKernelConfig,
    bfloat4_b,
    bfloat8_b,
    bfloat16,
    float32,
    init_device_compute_kernel_config,
    uint32,
)

_record_operations(globals(), vars(experimental), vars(transformer))

__all__ = [name for name in dir() if not name.startswith("_")]
