"""Two-dimensional convolution in the channels-last form of TT-NN."""

import torch

from .checks import check, check_dtype, check_layout, check_operands, describe
from .device import MeshDevice
from .eltwise import FLOATS, activation_of
from .formats import as_multiplied, pack, storage_dtype
from .gemm import ACCURATE, add_bias, exact_operands, fuses_natively, is_grouped, product
from .grouped_sums import GROUP
from .mesh import per_chip
from .tensor import Tensor
from .transfer import from_torch, to_torch
from .types import Conv2dConfig, DataType, Layout, MathFidelity, MemoryConfig, StorageType, WormholeComputeKernelConfig

OUTPUT_ELEMENTS = 1 << 22
"""Elements of output computed at a time, in whole rows of pixels, so that fp32 temporaries stay small."""


@per_chip
def conv2d(
    *,
    input_tensor: Tensor,
    weight_tensor: Tensor,
    device: MeshDevice,
    in_channels: int,
    out_channels: int,
    batch_size: int,
    input_height: int,
    input_width: int,
    kernel_size,
    stride=(1, 1),
    padding=(0, 0),
    dilation=(1, 1),
    groups: int = 1,
    dtype: DataType | None = None,
    bias_tensor: Tensor | None = None,
    conv_config: Conv2dConfig | None = None,
    compute_config: WormholeComputeKernelConfig | None = None,
    memory_config: MemoryConfig | None = None,
    slice_config=None,
    return_output_dim: bool = False,
    return_weights_and_bias: bool = False,
):
    """Convolution of ``[1, 1, N * H * W, C]`` or ``[N, H, W, C]`` to ``[1, 1, N * Ho * Wo, O]`` in tiles.

    ``weight_tensor``: row-major ``[O, C / groups, kh, kw]``, or as an earlier call prepared it,
    ``[1, 1, kh * kw * C, O]`` tiles on the device; ``bias_tensor``: ``[1, 1, 1, O]`` on the host or prepared.
    ``padding``: (h, w) or (top, bottom, left, right).

    Returns the output, whose padding holds anything where positions fill no tiles; with ``return_output_dim`` also
    ``(Ho, Wo)``, with ``return_weights_and_bias`` also ``(weight, bias)`` as prepared, in this order. ``slice_config``
    has no effect.

    Raises RuntimeError for a device opened without ``l1_small_size``, and for shapes that contradict the arguments
    (of which TT-NN checks few); groups other than 1 are not emulated.
    """
    op, conv_config = "conv2d", conv_config or Conv2dConfig()
    check_operands(op, input_tensor=input_tensor)
    check_dtype(op, FLOATS, input_tensor=input_tensor)
    check(
        device.l1_small_size > 0,
        op,
        "Out of Memory: Not enough space to allocate L1_SMALL buffer; set l1_small_size when opening the device",
    )
    check(groups == 1, op, f"groups = {groups} is not emulated")
    kernel, stride, dilation = tuple(kernel_size), tuple(stride), tuple(dilation)
    top, bottom, left, right = padding if len(padding) == 4 else (padding[0], padding[0], padding[1], padding[1])
    flat, full = (
        (1, 1, batch_size * input_height * input_width, in_channels),
        (batch_size, input_height, input_width, in_channels),
    )
    check(
        input_tensor.shape in (flat, full),
        op,
        f"input must be {list(flat)} or {list(full)}, got {describe(input_tensor)}",
    )
    span = [d * (k - 1) + 1 for d, k in zip(dilation, kernel)]
    padded = (input_height + top + bottom, input_width + left + right)
    check(
        span[0] <= padded[0] and span[1] <= padded[1], op, f"kernel {kernel} does not fit into {padded} padded pixels"
    )
    size = tuple((p - s) // step + 1 for p, s, step in zip(padded, span, stride))
    weight = _prepared_weight(op, weight_tensor, device, (out_channels, in_channels, *kernel), conv_config)
    bias = _prepared_bias(op, bias_tensor, device, out_channels, weight.dtype)

    dtype = dtype or input_tensor.dtype
    images = input_tensor.values.view(full)
    out = torch.empty(batch_size, *size, out_channels, dtype=storage_dtype(dtype), device=images.device)
    offset = None if bias is None else bias.values.view(out_channels)
    activation = None if conv_config.activation is None else activation_of(op, conv_config.activation)
    config = compute_config or ACCURATE
    check(config.math_fidelity is not MathFidelity.Invalid, op, "the compute config has no math fidelity")
    taps = weight.values.view(*kernel, in_channels, out_channels)
    grouped = is_grouped(size[0] * size[1] * taps.numel(), images.device)
    # torch adds the bias before it rounds.
    native = config.fp32_dest_acc_en and not grouped and dtype is DataType.BFLOAT16 and activation is None
    native = native and fuses_natively(images, taps, *([] if offset is None else [offset]))
    rows = max(1, OUTPUT_ELEMENTS // (size[1] * out_channels))
    for image, target in zip(images, out):
        for start in range(0, size[0], rows):
            stop = min(start + rows, size[0])
            first, last = start * stride[0] - top, (stop - 1) * stride[0] - top + span[0]
            band = image[max(first, 0) : max(min(last, input_height), 0)]
            edges = (0, 0, left, right, max(-first, 0), max(last - input_height, 0))
            band = torch.nn.functional.pad(band, edges)
            if native:
                target[start:stop] = _exact_convolution(band, taps, offset, stride, dilation, config, torch.bfloat16)
                continue
            tile = _convolve(band, taps, stride, dilation, config, grouped)
            if offset is not None:
                tile = add_bias(tile, offset)
            if activation is not None:
                tile = activation(tile)
            target[start:stop] = pack(tile, dtype)
    values = out.view(1, 1, -1, out_channels)
    result = Tensor(values, dtype, Layout.TILE, device, memory_config, unknown_padding=True)
    extras = [size] * return_output_dim + [(weight, bias)] * return_weights_and_bias
    return (result, *extras) if extras else result


def _prepared_weight(op, weight, device, shape, config):
    outputs, inputs, height, width = shape
    ready = (1, 1, height * width * inputs, outputs)
    if weight.storage_type() is StorageType.DEVICE and weight.shape == ready:
        check_operands(op, weight_tensor=weight)
        check_layout(op, Layout.TILE, weight_tensor=weight)
        return weight
    check(weight.shape == shape, op, f"weight must be {list(shape)} or prepared {list(ready)}, got {describe(weight)}")
    check_layout(op, Layout.ROW_MAJOR, weight_tensor=weight)
    values = to_torch(weight).permute(2, 3, 1, 0).reshape(ready)
    return from_torch(values, config.weights_dtype or weight.dtype, layout=Layout.TILE, device=device)


def _prepared_bias(op, bias, device, outputs, dtype):
    if bias is None:
        return None
    check(bias.shape == (1, 1, 1, outputs), op, f"bias must be [1, 1, 1, {outputs}], got {describe(bias)}")
    if bias.storage_type() is StorageType.DEVICE and bias.layout is Layout.TILE:
        check_operands(op, bias_tensor=bias)
        return bias
    return from_torch(to_torch(bias), dtype, layout=Layout.TILE, device=device)


def _convolve(band, weight, stride, dilation, config, grouped: bool) -> torch.Tensor:
    """``band[H, W, C]`` (padded) with ``weight[kh, kw, C, O]``: fp32 ``[Ho, Wo, O]``. ``grouped``: see ``product``."""
    if grouped or not config.fp32_dest_acc_en:
        return _convolve_as_product(band, weight, stride, dilation, config, grouped)
    return _exact_convolution(band, weight, None, stride, dilation, config, torch.float32)


def _exact_convolution(band, weight, bias, stride, dilation, config, dtype: torch.dtype) -> torch.Tensor:
    """``dtype``: of the result; the operands are exact in it."""
    # torch transposes two dimensions many times as quickly as four.
    filters = weight.flatten(0, 2).mT.contiguous().view(weight.shape[3], *weight.shape[:3])
    operands = exact_operands(as_multiplied(band)[None], as_multiplied(filters), config.math_fidelity)
    pixels, filters = (values.to(dtype).permute(0, 3, 1, 2) for values in operands)
    return torch.nn.functional.conv2d(pixels, filters, bias, stride=stride, dilation=dilation)[0].permute(1, 2, 0)


def _convolve_as_product(band, weight, stride, dilation, config, grouped):
    # As the kernel orders them: by position, then channels, which are padded so that a group of terms is at one.
    padding = -band.shape[-1] % GROUP
    band, weight = torch.nn.functional.pad(band, (0, padding)), torch.nn.functional.pad(weight, (0, 0, 0, padding))
    kernel = weight.shape[:2]
    height, width = ((n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(band.shape, kernel, stride, dilation))
    rows, columns = (
        [slice(k * d, k * d + (n - 1) * s + 1, s) for k in range(taps)]
        for taps, d, n, s in zip(kernel, dilation, (height, width), stride)
    )
    patches = torch.cat([band[down, across] for down in rows for across in columns], -1)
    return product(patches.flatten(0, 1), weight.flatten(0, 2), config, grouped).view(height, width, -1)
