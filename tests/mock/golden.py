"""The child process of test_golden: the emulator's operations beside TT-NN's golden functions.

A golden function is what TT-NN itself compares an operation with; it computes with torch, here in float32. The first
line printed has the names of all emulated operations that have one, each of the others the relative RMSE of a result.
"""

import json
from collections.abc import Callable, Iterator
from inspect import isfunction
from operator import attrgetter

import torch
import ttnn as real

import tt_flux_kontext.emulator as ttnn
from reference.accuracy import relative_rmse
from tt_flux_kontext.planner.mock_device import answer

FOLDERS = ("", "experimental.", "transformer.")
EXACT = {
    "compute_kernel_config": ttnn.WormholeComputeKernelConfig(
        math_fidelity=ttnn.MathFidelity.HiFi4, fp32_dest_acc_en=True, packer_l1_acc=True
    )
}
ROW_MAJOR = ttnn.ROW_MAJOR_LAYOUT
DEVICE = ttnn.open_mesh_device(l1_small_size=32768)


def main() -> None:
    with answer():
        torch.manual_seed(0)
        print(json.dumps({"with golden": [name for name in sorted(operations()) if golden(name)]}), flush=True)
        for name, out, reference in comparisons():
            for error in map(difference, listed(out), listed(reference)):
                print(json.dumps({"op": name, "error": error}), flush=True)


def operations() -> Iterator[str]:
    """Names of all that the emulator has a function for."""
    for folder in FOLDERS:
        module = attrgetter(folder[:-1])(ttnn) if folder else ttnn
        yield from (folder + name for name in module.__all__ if isfunction(getattr(module, name)))


def golden(name: str) -> Callable | None:
    try:
        return real.get_golden_function(attrgetter(name)(real))
    except (AttributeError, RuntimeError):  # no operation of TT-NN; one without a golden function
        return None


def listed(result) -> list:
    return list(result) if isinstance(result, (list, tuple)) else [result]


def difference(out, reference: torch.Tensor) -> float:
    out = out if isinstance(out, torch.Tensor) else ttnn.to_torch(out)
    assert out.shape == reference.shape, f"{tuple(out.shape)} is not {tuple(reference.shape)}"
    return 0.0 if torch.equal(out.double(), reference.double()) else relative_rmse(out, reference)


def put(x: torch.Tensor, dtype=ttnn.bfloat16, layout=ttnn.TILE_LAYOUT) -> ttnn.Tensor:
    return ttnn.from_torch(x, dtype=dtype, layout=layout, device=DEVICE)


def random(*shape: int) -> torch.Tensor:
    """Float32 [shape], exact in bfloat16."""
    return torch.randn(shape).bfloat16().float()


def comparisons() -> Iterator[tuple]:
    """Name, what the emulator gives, what the golden function gives. Sizes are of the models, but for fewer tokens."""
    yield from elementwise()
    yield from products()
    yield from normalisation()
    yield from attention()
    yield from convolution()
    yield from movement()
    yield from conversion()


def elementwise() -> Iterator[tuple]:
    x, y, row = random(1, 1, 256, 3072), random(1, 1, 256, 3072), random(1, 1, 1, 3072)
    for name in ("silu", "sigmoid", "tanh", "relu", "gelu"):
        yield name, getattr(ttnn, name)(put(x)), golden(name)(x)
    tanh = ttnn.gelu(put(x), variant=ttnn.GeluVariant.Tanh)
    yield "gelu", tanh, golden("gelu")(x, variant=real.GeluVariant.Tanh)
    for name in ("add", "subtract", "multiply", "mul"):
        for other in (y, row):
            yield name, getattr(ttnn, name)(put(x), put(other)), golden(name)(x, other)
        yield name, getattr(ttnn, name)(put(x), 0.125), golden(name)(x, 0.125)
    yield "addcmul", ttnn.addcmul(put(x), put(y), put(row)), golden("addcmul")(x, y, row)


def products() -> Iterator[tuple]:
    x, w, b = random(1, 1, 256, 3072), random(3072, 256) / 64, random(1, 256)
    for activation in (None, "silu", "gelu"):
        out = ttnn.linear(put(x), put(w), bias=put(b), activation=activation, **EXACT)
        yield "linear", out, golden("linear")(x, w, bias=b, activation=activation)
    q, k = random(1, 12, 77, 64), random(1, 12, 77, 64)
    yield "matmul", ttnn.matmul(put(q), put(k), transpose_b=True, **EXACT), golden("matmul")(q, k, transpose_b=True)


def normalisation() -> Iterator[tuple]:
    x, affine = random(1, 1, 256, 3072), {"weight": random(1, 3072), "bias": random(1, 3072)}
    placed = {name: put(values) for name, values in affine.items()}
    for name in ("layer_norm", "rms_norm"):
        out = getattr(ttnn, name)(put(x), epsilon=1e-6, **placed, **EXACT)
        yield name, out, golden(name)(x, epsilon=1e-6, **affine)
    rows = torch.randn(1, 4, 77, 96)
    for name in ("mean", "var"):
        out = getattr(ttnn, name)(put(rows, ttnn.float32), dim=2, keepdim=True)
        yield name, out, golden(name)(rows, dim=2, keepdim=True)
    scores = random(1, 12, 77, 77)
    yield "softmax", ttnn.softmax(put(scores), dim=-1, **EXACT), golden("softmax")(scores, dim=-1)
    pixels, affine = random(1, 1, 4096, 128), {"weight": random(1, 1, 4, 32), "bias": random(1, 1, 4, 32)}
    placed = {name: put(values, layout=ROW_MAJOR) for name, values in affine.items()}
    groups = {"num_groups": 32, "epsilon": 1e-6}
    out = ttnn.group_norm(put(pixels), inplace=False, **groups, **placed, **EXACT)
    yield "group_norm", out, golden("group_norm")(pixels, **groups, **affine)


def attention() -> Iterator[tuple]:
    q, k, v = (random(1, 8, 256, 128) for _ in range(3))
    name = "transformer.scaled_dot_product_attention"
    grid = DEVICE.compute_with_storage_grid_size()
    program = ttnn.SDPAProgramConfig(
        compute_with_storage_grid_size=grid, q_chunk_size=128, k_chunk_size=512, exp_approx_mode=False
    )
    options = EXACT | {"program_config": program}
    for causal in (False, True):
        out = ttnn.transformer.scaled_dot_product_attention(put(q), put(k), put(v), is_causal=causal, **options)
        yield name, out, golden(name)(q, k, v, is_causal=causal)
    name = "transformer.joint_scaled_dot_product_attention"
    parts = [part[:, :, rows] for rows in (slice(160), slice(160, 256)) for part in (q, k, v)]
    out = ttnn.transformer.joint_scaled_dot_product_attention(*map(put, parts), joint_strategy="rear", **options)
    yield name, out, golden(name)(*parts, joint_strategy="rear")


def convolution() -> Iterator[tuple]:
    """The VAE's 3 x 3, and with stride 2 its downsampling."""
    x, w, b = random(1, 1, 4096, 128), random(128, 128, 3, 3) / 32, random(1, 1, 1, 128)
    shape = {"in_channels": 128, "out_channels": 128, "batch_size": 1, "input_height": 64, "input_width": 64}
    for stride, padding in (((1, 1), (1, 1)), ((2, 2), (0, 1, 0, 1))):
        arguments = shape | {"kernel_size": (3, 3), "stride": stride, "padding": padding}
        weight, bias = (ttnn.from_torch(values, dtype=ttnn.bfloat16) for values in (w, b))
        out = ttnn.conv2d(
            input_tensor=put(x),
            weight_tensor=weight,
            bias_tensor=bias,
            device=DEVICE,
            compute_config=EXACT["compute_kernel_config"],
            **arguments,
        )
        yield "conv2d", out, golden("conv2d")(x, w, bias_tensor=b, **arguments)


def movement() -> Iterator[tuple]:
    image, heads = random(1, 32, 32, 512), random(1, 12, 77, 64)
    yield "upsample", ttnn.upsample(put(image, layout=ROW_MAJOR), 2), golden("upsample")(image, 2)
    yield "reshape", ttnn.reshape(put(image), (1, 1, 1024, 512)), golden("reshape")(image, (1, 1, 1024, 512))
    yield "permute", ttnn.permute(put(heads), (0, 2, 1, 3)), golden("permute")(heads, (0, 2, 1, 3))
    ids, table = torch.randint(1000, (1, 77)), random(1000, 768)
    out = ttnn.embedding(put(ids, ttnn.uint32, ROW_MAJOR), put(table, layout=ROW_MAJOR), layout=ttnn.TILE_LAYOUT)
    yield "embedding", out, golden("embedding")(ids, table)
    x, y = random(1, 1, 77, 768), random(1, 1, 64, 768)
    yield "concat", ttnn.concat([put(x), put(y)], dim=2), golden("concat")([x, y], dim=2)
    row = [0, 0, 70, 0], [1, 1, 71, 768]
    yield "slice", ttnn.slice(put(x), *row), golden("slice")(x, *row)
    padding = [(0, 0), (0, 0), (0, 19), (0, 0)]
    yield "pad", ttnn.pad(put(x), padding, 0.5), golden("pad")(x, padding, value=0.5)
    filled = ttnn.fill_implicit_tile_padding(put(x), 0.5)
    yield "fill_implicit_tile_padding", filled, golden("fill_implicit_tile_padding")(x, 0.5)


def conversion() -> Iterator[tuple]:
    x = torch.randn(256, 768)  # with bits that bfloat16 doesn't have
    for dtype in ("float32", "bfloat16", "bfloat8_b", "bfloat4_b"):
        out = ttnn.from_torch(x, dtype=getattr(ttnn, dtype))
        yield "from_torch", out, golden("from_torch")(x, dtype=getattr(real, dtype))
    # Not to block floats: the golden function rounds them as the host does, not as the chip's packer.
    yield "typecast", ttnn.typecast(put(x, ttnn.float32), ttnn.bfloat16), golden("typecast")(x, real.bfloat16)
    on_device, on_host = put(x, ttnn.float32), ttnn.from_torch(x, dtype=ttnn.float32)
    yield "to_torch", ttnn.to_torch(on_device), golden("to_torch")(x)
    yield "to_layout", ttnn.to_layout(on_device, ROW_MAJOR), golden("to_layout")(x)
    yield "from_device", ttnn.from_device(on_device), golden("from_device")(x)
    yield "to_device", ttnn.to_device(on_host, DEVICE), golden("to_device")(x)
    yield "zeros", ttnn.zeros((32, 64)), golden("zeros")((32, 64))


if __name__ == "__main__":
    main()
