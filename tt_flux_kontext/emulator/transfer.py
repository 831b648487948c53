"""Making tensors, moving them between torch, host and device, and changing their dtype or layout."""

import json
import os
import uuid
from pathlib import Path

import torch

from .checks import check, check_no_capture, check_operands, describe
from .device import MeshDevice
from .distribution import MeshComposer, MeshMapper
from .formats import host_convert, pack, storage_dtype
from .mesh import distributed, per_chip, shards_of
from .tensor import Tensor, device_tensor, written
from .types import DRAM_MEMORY_CONFIG, DataType, DumpTensorMode, Layout, MemoryConfig, StorageType

_DTYPE_OF_TORCH = {
    torch.float32: DataType.FLOAT32,
    torch.bfloat16: DataType.BFLOAT16,
    torch.float16: DataType.BFLOAT16,
    torch.int64: DataType.UINT32,
    torch.uint32: DataType.UINT32,
}

_FILE_START = b"emulated ttnn.Tensor, 1\n"


def from_torch(
    tensor: torch.Tensor,
    dtype: DataType | None = None,
    *,
    layout: Layout | None = None,
    device: MeshDevice | None = None,
    memory_config: MemoryConfig | None = None,
    mesh_mapper: MeshMapper | None = None,
) -> Tensor:
    """A copy of a torch tensor, on the device if one is given: of a mesh each chip's part, or all on each chip.

    ``dtype`` defaults to the torch tensor's, ``layout`` to row-major (block floats: tiles). Conversion follows the
    host's rules. Raises RuntimeError for a torch dtype without a counterpart and for row-major block floats.
    """
    if dtype is None:
        check(tensor.dtype in _DTYPE_OF_TORCH, "from_torch", f"no ttnn dtype for {tensor.dtype}; pass dtype")
        dtype = _DTYPE_OF_TORCH[tensor.dtype]
    if layout is None:
        layout = Layout.TILE if dtype.is_block_float else Layout.ROW_MAJOR
    parts = [tensor] if mesh_mapper is None else mesh_mapper.split(tensor)
    converted = {id(part): Tensor(_converted_copy(part, dtype), dtype, layout) for part in parts}
    on_host = distributed([converted[id(part)] for part in parts], None)
    return on_host if device is None else to_device(on_host, device, memory_config)


def _converted_copy(values, dtype):
    converted = host_convert(values.detach(), dtype)
    return converted.clone() if converted.data_ptr() == values.data_ptr() else converted


def to_torch(
    tensor: Tensor, dtype: torch.dtype | None = None, *, mesh_composer: MeshComposer | None = None
) -> torch.Tensor:
    """The values as a torch tensor on the CPU: bf16, fp32 (block floats too) or uint32, unless ``dtype`` is given.

    Raises RuntimeError for a tensor of several shards without a composer.
    """
    natural = {DataType.BFLOAT16: torch.bfloat16, DataType.UINT32: torch.uint32}.get(tensor.dtype, torch.float32)
    check_no_capture("to_torch", tensor.device(), "reads are")
    parts = [shard.values for shard in shards_of(tensor)]
    single = len(parts) == 1
    check(single or mesh_composer is not None, "to_torch", f"supply a mesh composer to join {len(parts)} shards")
    values = parts[0] if mesh_composer is None else mesh_composer.join(parts)
    return values.to("cpu", dtype or natural, copy=True)


@per_chip
def to_device(tensor: Tensor, device: MeshDevice, memory_config: MemoryConfig | None = None) -> Tensor:
    """The tensor on the device; one that is there already is returned as it is."""
    if tensor.storage_type() is StorageType.DEVICE:
        check_operands("to_device", tensor=tensor)
        return tensor
    check_no_capture("to_device", device, "writes are")
    return Tensor(_placed(tensor.values, device), tensor.dtype, tensor.layout, device, memory_config)


def copy_host_to_device_tensor(host_tensor: Tensor, device_tensor: Tensor) -> None:
    """Write a host tensor, or each of its shards, where a device tensor is; views of that see it too.

    Raises RuntimeError for another shape, dtype, layout or count of shards.
    """
    op = "copy_host_to_device_tensor"
    check(host_tensor.storage_type() is StorageType.HOST, op, f"{describe(host_tensor)} is not on the host")
    check_operands(op, device_tensor=device_tensor)
    check_no_capture(op, device_tensor.device(), "writes are")
    for field in ("shape", "dtype", "layout"):
        theirs, ours = getattr(host_tensor, field), getattr(device_tensor, field)
        check(theirs == ours, op, f"the host tensor has {field} {theirs}, the device tensor {ours}")
    sources, targets = shards_of(host_tensor), shards_of(device_tensor)
    sources = sources * len(targets) if len(sources) == 1 else sources
    check(len(sources) == len(targets), op, f"the host tensor has {len(sources)} shards for {len(targets)} chips")
    for source, target in zip(sources, targets):
        target.write(_placed(source.values, target.device()))


@per_chip
def from_device(tensor: Tensor) -> Tensor:
    """The tensor on the host; one that is there already is returned as it is."""
    if tensor.storage_type() is StorageType.HOST:
        return tensor
    check_operands("from_device", tensor=tensor)
    check_no_capture("from_device", tensor.device(), "reads are")
    return Tensor(tensor.values.cpu(), tensor.dtype, tensor.layout)


def dump_tensor(
    file_name: str | Path, tensor: Tensor, *, mode: DumpTensorMode = DumpTensorMode.DISTRIBUTED_GATHER
) -> None:
    """Write a tensor to a file: a line that names the format, a line of JSON, and the values as they are stored.

    Of several shards those that differ are stored, once each, and JSON has which of them each chip holds. The file
    appears as a whole or not at all. Raises RuntimeError for a name without TT-NN's extension and when the file can't
    be written.
    """
    path = _tensor_file("dump_tensor", file_name)
    check_no_capture("dump_tensor", tensor.device(), "reads are")
    shards = shards_of(tensor)
    stored = {shard.address: shard.values for shard in shards}
    header = {"shape": list(tensor.shape), "dtype": tensor.dtype.name, "layout": tensor.layout.name}
    if len(shards) > 1:
        header["shards"] = [list(stored).index(shard.address) for shard in shards]
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(_FILE_START + json.dumps(header).encode() + b"\n")
            for values in stored.values():
                file.write(_bytes(values.cpu()))
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        check(not isinstance(error, OSError), "dump_tensor", f"can't write {path}: {error}")
        raise


def load_tensor(file_name: str | Path, *, device: MeshDevice | None = None) -> Tensor:
    """The tensor of a file that ``dump_tensor`` wrote, in DRAM if a device is given.

    Raises RuntimeError for a name without TT-NN's extension, for a file that is absent, cut off or something else, and
    for another count of shards than the device has chips; a single one is for all of them.
    """
    path = _tensor_file("load_tensor", file_name)
    check(path.is_file(), "load_tensor", f"there is no file {path}")
    with open(path, "rb") as file:
        check(file.readline(len(_FILE_START)) == _FILE_START, "load_tensor", f"{path} is no file of a tensor")
        try:
            header = json.loads(file.readline())
            dtype, layout, places = DataType[header["dtype"]], Layout[header["layout"]], header.get("shards", [0])
            stored = [torch.empty(header["shape"], dtype=storage_dtype(dtype)) for _ in range(max(places) + 1)]
            whole = all(file.readinto(_bytes(values)) == values.nbytes for values in stored) and not file.read(1)
        except (ValueError, KeyError, TypeError):
            whole = False
        check(whole, "load_tensor", f"{path} is truncated or corrupt")
    held = [Tensor(values, dtype, layout) for values in stored]
    on_host = distributed([held[place] for place in places], None)
    return on_host if device is None else to_device(on_host, device)


@per_chip
def empty(
    shape,
    dtype: DataType = DataType.BFLOAT16,
    layout: Layout = Layout.ROW_MAJOR,
    device: MeshDevice | None = None,
    memory_config: MemoryConfig = DRAM_MEMORY_CONFIG,
) -> Tensor:
    """A device tensor of unspecified values; its host memory is not touched until something is."""
    if device is None:
        raise TypeError("empty(): a device is needed")
    values = torch.empty(tuple(shape), dtype=storage_dtype(dtype), device=device.torch_device)
    return Tensor(values, dtype, layout, device, memory_config)


@per_chip
def zeros(
    shape,
    dtype: DataType | None = None,
    layout: Layout | None = None,
    device: MeshDevice | None = None,
    memory_config: MemoryConfig | None = None,
) -> Tensor:
    """A tensor of zeros, by default bf16, row-major and on the host."""
    check_no_capture("zeros", device, "writes are")
    dtype, layout = dtype or DataType.BFLOAT16, layout or Layout.ROW_MAJOR
    where = "cpu" if device is None else device.torch_device
    return Tensor(
        torch.zeros(tuple(shape), dtype=storage_dtype(dtype), device=where), dtype, layout, device, memory_config
    )


@per_chip
def to_layout(
    tensor: Tensor,
    layout: Layout,
    dtype: DataType | None = None,
    memory_config: MemoryConfig | None = None,
) -> Tensor:
    """The tensor in another layout. Block floats become bf16 in row-major, the only layout they do not have."""
    if dtype is None:
        dtype = DataType.BFLOAT16 if tensor.dtype.is_block_float and layout is Layout.ROW_MAJOR else tensor.dtype
    if (layout, dtype) == (tensor.layout, tensor.dtype):
        return tensor
    return _converted("to_layout", tensor, dtype, layout, memory_config)


@per_chip
def typecast(
    input_tensor: Tensor,
    dtype: DataType,
    *,
    memory_config: MemoryConfig | None = None,
    output_tensor: Tensor | None = None,
) -> Tensor:
    """The tensor in another dtype: to bf16 ties to even, to block floats by the packer's or, on the host, its rules.

    A row-major host tensor becomes tiles when cast to a block float; a row-major device tensor is refused.
    ``output_tensor``, on the device, takes the result.
    """
    op, on_host = "typecast", input_tensor.storage_type() is StorageType.HOST
    if output_tensor is not None:
        check_operands(op, input_tensor=input_tensor, output_tensor=output_tensor)
        return written(op, output_tensor, _cast(op, input_tensor, dtype), dtype, input_tensor)
    layout = Layout.TILE if on_host and dtype.is_block_float else input_tensor.layout
    return _converted(op, input_tensor, dtype, layout, memory_config or input_tensor.memory_config())


def _converted(op, tensor, dtype, layout, memory_config):
    if tensor.storage_type() is StorageType.HOST:
        return Tensor(host_convert(tensor.values, dtype), dtype, layout)
    check_operands(op, tensor=tensor)
    return device_tensor(_cast(op, tensor, dtype), tensor, dtype=dtype, layout=layout, memory_config=memory_config)


def _cast(op, tensor, dtype) -> torch.Tensor:
    """Values of a device tensor in another dtype."""
    if dtype is tensor.dtype:
        return tensor.values
    if DataType.UINT32 in (dtype, tensor.dtype) or (op, dtype) == ("typecast", DataType.BFLOAT16):
        return tensor.values.to(storage_dtype(dtype))
    return pack(tensor.values.to(torch.float32, copy=True), dtype)


def _tensor_file(op, file_name) -> Path:
    path = Path(file_name)
    check(path.suffix == ".tensorbin", op, f"file {path} must have .tensorbin extension")
    return path


def _bytes(values):
    """The memory of a contiguous tensor on the CPU."""
    return values.view(-1).view(torch.uint8).numpy()


def _placed(values, device):
    return values if device is None else values.to(device.torch_device)
