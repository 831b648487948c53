"""Wrong calls: what TT-NN refuses, and what it should."""

import pytest
import torch

import tt_flux_kontext.emulator as ttnn

TILE, RM = ttnn.TILE_LAYOUT, ttnn.ROW_MAJOR_LAYOUT
F32, BF8, U32 = ttnn.float32, ttnn.bfloat8_b, ttnn.uint32
SDPA, JOINT = ttnn.transformer.scaled_dot_product_attention, ttnn.transformer.joint_scaled_dot_product_attention
ROPE, MINIMAL = ttnn.experimental.rotary_embedding_llama, ttnn.experimental.minimal_matmul
HEADS = ttnn.experimental.nlp_create_qkv_heads
GATED = ttnn.experimental.dit_minimal_matmul_addcmul_fused


@pytest.fixture(scope="module")
def device():
    return ttnn.open_mesh_device(ttnn.MeshShape(1, 1), l1_small_size=32768)


@pytest.fixture(scope="module")
def new(device):
    """``new(2, 3, dtype=, layout=)``: a device tensor; bf16 tiles by default."""

    def make(*shape, dtype=ttnn.bfloat16, layout=TILE):
        return ttnn.empty(shape, dtype=dtype, layout=layout, device=device)

    return make


def host(*shape):
    return ttnn.from_torch(torch.ones(shape), dtype=ttnn.bfloat16, layout=TILE)


def freed(tensor):
    ttnn.deallocate(tensor)
    return tensor


def program(q=32, x=8):
    return ttnn.SDPAProgramConfig(compute_with_storage_grid_size=ttnn.CoreCoord(x, 8), q_chunk_size=q, k_chunk_size=32)


def group_norm(x, **other):
    return ttnn.group_norm(x, **{"num_groups": 32, "inplace": False} | other)


CASES = {
    # operands
    "a host operand": (lambda n: ttnn.add(n(32, 32), host(32, 32)), "add: input_tensor_b must be on device"),
    "gelu of a host tensor": (lambda n: ttnn.gelu(host(32, 32)), "gelu: .*must be on device"),
    "gelu of a freed tensor": (lambda n: ttnn.gelu(freed(n(32, 32))), "gelu: .*deallocated"),
    "reading a freed tensor": (lambda n: ttnn.to_torch(freed(n(32, 32))), "deallocated"),
    "integers": (lambda n: ttnn.silu(n(32, 32, dtype=U32)), "silu: .*got UINT32"),
    "row-major block floats": (lambda n: n(32, 32, dtype=BF8, layout=RM), "only TILE layout is supported for BFLOAT8_B"),
    "casting row-major to block floats": (lambda n: ttnn.typecast(n(32, 32, layout=RM), BF8), "only TILE"),
    "a torch dtype without counterpart": (lambda n: ttnn.from_torch(torch.ones(1, dtype=torch.float64)), "float64"),
    # elementwise
    "no broadcast": (lambda n: ttnn.add(n(1, 1, 64, 64), n(1, 1, 64, 32)), "broadcasting rule violation"),
    "mixed layouts": (lambda n: ttnn.multiply(n(32, 32), n(32, 32, layout=RM)), "mixed layouts"),
    "addcmul of mixed dtypes": (lambda n: ttnn.addcmul(n(32, 32), n(32, 32), n(1, 32, dtype=F32)), "same dtype"),
    "addcmul in row-major": (lambda n: ttnn.addcmul(*[n(32, 32, layout=RM)] * 3), "must be in Layout.TILE"),
    # matrix products
    "inner dimensions": (lambda n: ttnn.linear(n(1, 1, 64, 64), n(96, 64)), "linear: inner dimensions differ: 64 and 96"),
    "row-major weights": (lambda n: ttnn.linear(n(64, 64), n(64, 64, layout=RM)), "must be in Layout.TILE"),
    "a narrow bias": (lambda n: ttnn.linear(n(64, 64), n(64, 96), bias=n(1, 64)), "bias must be"),
    "an unknown activation": (lambda n: ttnn.linear(n(64, 64), n(64, 96), activation="nope"), "unknown unary op: nope"),
    "batches": (lambda n: ttnn.matmul(n(2, 3, 33, 64), n(3, 2, 64, 96)), "batch dimensions differ"),
    "integers multiplied": (lambda n: ttnn.matmul(n(32, 32, dtype=U32), n(32, 32, dtype=U32)), "got UINT32"),
    "a grid over the device's": (lambda n: ttnn.linear(n(32, 32), n(32, 32), core_grid=ttnn.CoreGrid(x=9, y=1)), "larger than"),
    "no fidelity": (
        lambda n: ttnn.matmul(n(32, 32), n(32, 32), compute_kernel_config=ttnn.WormholeComputeKernelConfig()),
        "no math fidelity",
    ),
    "minimal_matmul: K": (lambda n: MINIMAL(n(64, 64), n(96, 64)), "K=64 and K_w=96"),
    "minimal_matmul: batched weight": (lambda n: MINIMAL(n(2, 1, 64, 64), n(2, 1, 64, 64)), "1 in all dims"),
    "minimal_matmul: bias": (lambda n: MINIMAL(n(64, 64), n(64, 96), bias_tensor=n(1, 64)), "one row of N = 96"),
    "gated: residual": (lambda n: GATED(n(64, 64), n(64, 96), 1.0, n(64, 64), n(1, 96)), "tensor1 must be"),
    "gated: gate": (lambda n: GATED(n(64, 64), n(64, 96), 1.0, n(64, 96), n(1, 64)), "tensor2 must be"),
    "gated: dtypes": (lambda n: GATED(n(64, 64), n(64, 96, dtype=BF8), 1.0, n(64, 96), n(1, 96)), "equal bytes"),
    # movement
    "slice past the end": (lambda n: ttnn.slice(n(1, 64), [0, 0], [1, 65]), "do not fit"),
    "slice backwards": (lambda n: ttnn.slice(n(64, 64), [32, 0], [16, 64]), "do not fit"),
    "slice of another rank": (lambda n: ttnn.slice(n(1, 64, 64), [0, 0], [1, 1]), "rank 3"),
    "concat of nothing": (lambda n: ttnn.concat([], 0), "non-empty"),
    "concat of dtypes": (lambda n: ttnn.concat([n(32, 32), n(32, 32, dtype=F32)], 0), "dtypes differ"),
    "concat of layouts": (lambda n: ttnn.concat([n(32, 32), n(32, 32, layout=RM)], 0), "layouts differ"),
    "concat of shapes": (lambda n: ttnn.concat([n(32, 32), n(32, 64)], 0), "shapes differ"),
    "concat beyond the rank": (lambda n: ttnn.concat([n(32, 32)] * 2, 2), "out of bounds"),
    "permute of too few": (lambda n: ttnn.permute(n(2, 32, 32), (0, 1)), "no permutation"),
    "permute of a repeated dimension": (lambda n: ttnn.permute(n(2, 32, 32), (0, 1, 1)), "no permutation"),
    "reshape to another volume": (lambda n: ttnn.reshape(n(64, 96), (64, 95)), "cannot take the shape"),
    "padding in front of tiles": (lambda n: ttnn.pad(n(32, 64), padding=[(2, 0), (0, 0)], value=0), "in front"),
    "upsampling padded tiles": (lambda n: ttnn.upsample(n(1, 16, 16, 40), 2), "tile-aligned"),
    "upsampling mode": (lambda n: ttnn.upsample(n(1, 16, 32, 32), 2, mode="cubic"), "mode must be"),
    "embedding ids": (lambda n: ttnn.embedding(n(1, 32, dtype=F32, layout=RM), n(40, 64)), "must be UINT32"),
    "embedding weights": (lambda n: ttnn.embedding(n(1, 32, dtype=U32, layout=RM), n(40, 64, dtype=F32)), "weight must be"),
    # normalisation
    "norm of integers": (lambda n: ttnn.layer_norm(n(32, 32, dtype=U32)), "layer_norm: .*got UINT32"),
    "norm weight width": (lambda n: ttnn.rms_norm(n(32, 64), weight=n(1, 32)), "one row of 64"),
    "norm weight per batch": (lambda n: ttnn.layer_norm(n(2, 1, 32, 64), weight=n(2, 1, 1, 64)), "one row of 64"),
    "norm weight on the host": (lambda n: ttnn.layer_norm(n(32, 64), weight=host(1, 64)), "must be on device"),
    "norm residual": (lambda n: ttnn.layer_norm(n(33, 64), residual_input_tensor=n(65, 64)), "one shape"),
    "softmax dimension": (lambda n: ttnn.softmax(n(32, 32), dim=2), "out of range"),
    "group norm in place": (lambda n: group_norm(n(1, 1, 64, 64), inplace=True), "in-place"),
    "group norm groups": (lambda n: group_norm(n(1, 1, 64, 64), num_groups=30), "not divisible"),
    "group norm of block floats": (lambda n: group_norm(n(1, 1, 64, 64, dtype=BF8)), "got BFLOAT8_B"),
    "group norm dtype": (lambda n: group_norm(n(1, 1, 64, 64), dtype=F32), "output dtype"),
    # attention
    "fp32 attention": (lambda n: SDPA(*[n(1, 2, 64, 32, dtype=F32)] * 3), "got FLOAT32"),
    "causal lengths": (lambda n: SDPA(n(1, 2, 64, 32), *[n(1, 2, 96, 32)] * 2), "one length"),
    "key heads": (lambda n: SDPA(n(1, 4, 64, 32), *[n(1, 3, 64, 32)] * 2, is_causal=False), "multiple of k's"),
    "partly filled heads": (lambda n: SDPA(*[n(1, 2, 64, 48)] * 3, is_causal=False), "head dim"),
    "causal and mask": (lambda n: SDPA(*[n(1, 2, 64, 32)] * 3, attn_mask=n(1, 1, 64, 64)), "cannot both"),
    "mask shape": (lambda n: SDPA(*[n(1, 2, 64, 32)] * 3, is_causal=False, attn_mask=n(1, 2, 1, 64)), "does not fit"),
    "chunk size": (lambda n: SDPA(*[n(1, 2, 64, 32)] * 3, program_config=program(q=48)), "multiples of 32"),
    "attention grid": (lambda n: SDPA(*[n(1, 2, 64, 32)] * 3, program_config=program(x=20)), "larger than"),
    "joint strategy": (lambda n: JOINT(*[n(1, 2, 64, 32)] * 6, joint_strategy="front", program_config=program()), "'rear'"),
    "joint lengths": (
        lambda n: JOINT(n(1, 2, 64, 32), *[n(1, 2, 96, 32)] * 2, *[n(1, 2, 64, 32)] * 3, joint_strategy="rear", program_config=program()),
        "shape of its query",
    ),
    "heads of partial tiles": (lambda n: HEADS(n(1, 1, 64, 288), num_heads=2), "whole tiles"),
    "heads of rank 3": (lambda n: HEADS(n(1, 64, 192), num_heads=2), "rank 4"),
    "rope tables too short": (lambda n: ROPE(n(1, 2, 64, 64), *[n(1, 1, 32, 64)] * 2, n(1, 1, 32, 32)), "shorter"),
    "rope of partial tiles": (lambda n: ROPE(n(1, 2, 64, 48), *[n(1, 1, 64, 48)] * 2, n(1, 1, 32, 32)), "whole tiles"),
    "rope in fp32": (lambda n: ROPE(n(1, 2, 64, 64), *[n(1, 1, 64, 64, dtype=F32)] * 2, n(1, 1, 32, 32)), "got FLOAT32"),
    "rope matrix": (lambda n: ROPE(n(1, 2, 64, 64), *[n(1, 1, 64, 64)] * 2, n(1, 1, 64, 64)), "trans_mat"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_refused(new, case):
    call, message = CASES[case]
    with pytest.raises(RuntimeError, match=f"TT_FATAL: .*{message}"):
        call(new)


def test_embedding_ids_beyond_the_weight(new, device):
    ids = ttnn.from_torch(torch.tensor([[40]]), dtype=U32, device=device)
    with pytest.raises(RuntimeError, match="beyond the 40 rows"):
        ttnn.embedding(ids, new(40, 64))


def test_unknown_and_positional_arguments(new):
    x = new(32, 32)
    for call in (
        lambda: ttnn.linear(x, x, bais=x),
        lambda: ttnn.gelu(x, True),
        lambda: ttnn.layer_norm(x, 1e-6),
        lambda: ttnn.pad(x, padding=[(0, 0), (0, 1)]),
        lambda: MINIMAL(x, x, x),
        lambda: ttnn.add(x, x, activations=["silu"]),
        lambda: ttnn.add(torch.ones(1), x),
    ):
        with pytest.raises(TypeError):
            call()


CONV = {
    "input": ({"input_height": 15}, "input must be"),
    "in channels": ({"in_channels": 32}, "input must be"),
    "out channels": ({"out_channels": 32}, "weight must be"),
    "kernel": ({"kernel_size": (1, 1)}, "weight must be"),
    "kernel larger than the image": ({"kernel_size": (5, 5), "input_height": 64, "input_width": 4, "padding": (0, 0)}, "does not fit"),
    "groups": ({"groups": 2}, "groups"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONV)
def test_convolution_refuses(new, device, case):
    changes, message = CONV[case]
    with pytest.raises(RuntimeError, match=f"conv2d: .*{message}"):
        ttnn.conv2d(**_convolution(new, device) | changes)


def test_convolution_needs_l1_small(new):
    device = ttnn.open_mesh_device(ttnn.MeshShape(1, 1))
    x = ttnn.empty([1, 1, 256, 64], layout=TILE, device=device)
    with pytest.raises(RuntimeError, match="l1_small_size"):
        ttnn.conv2d(**_convolution(new, device) | {"input_tensor": x})


def _convolution(new, device):
    return {
        "input_tensor": new(1, 1, 256, 64),
        "weight_tensor": ttnn.from_torch(torch.ones(64, 64, 3, 3), dtype=ttnn.bfloat16),
        "device": device,
        "in_channels": 64,
        "out_channels": 64,
        "batch_size": 1,
        "input_height": 16,
        "input_width": 16,
        "kernel_size": (3, 3),
        "padding": (1, 1),
    }
