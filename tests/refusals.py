"""Wrong calls of TT-NN, through the door: what it refuses, and what it should.

The emulator refuses all of them (tests/unit/test_emulator_refusals.py), real TT-NN all but those in `SILENT`
(tests/mock/test_refusals.py).
"""

from dataclasses import dataclass

import torch

from tt_flux_kontext.backend import ttnn

# Names, since reading anything from the door while this module is imported would choose the backend.
RM, F32, BF8, U32 = "ROW_MAJOR_LAYOUT", "float32", "bfloat8_b", "uint32"


@dataclass(frozen=True)
class New:
    """``n(2, 3, dtype=, layout=)``: a device tensor of unspecified values, bfloat16 tiles by default."""

    device: "ttnn.MeshDevice"

    def __call__(self, *shape: int, dtype: str = "bfloat16", layout: str = "TILE_LAYOUT") -> "ttnn.Tensor":
        return ttnn.empty(shape, dtype=getattr(ttnn, dtype), layout=getattr(ttnn, layout), device=self.device)


def host(*shape):
    return ttnn.from_torch(torch.ones(shape), dtype=ttnn.bfloat16, layout=ttnn.TILE_LAYOUT)


def freed(tensor):
    ttnn.deallocate(tensor)
    return tensor


def minimal(*operands, **other):
    return ttnn.experimental.minimal_matmul(*operands, **other)


def split(x, weight, **other):
    return ttnn.experimental.minimal_matmul_split(x, weight, **other)


def gated(*operands):
    return ttnn.experimental.dit_minimal_matmul_addcmul_fused(*operands)


def group_norm(x, **other):
    return ttnn.group_norm(x, **{"num_groups": 32, "inplace": False} | other)


def head_norm(n, x, heads=2, **other):
    return ttnn.experimental.dit_fused_distributed_rmsnorm(
        x, None, n.device, [], num_heads_per_device=heads, per_head_norm=True, **other
    )


def turning(n, rows=64, width=32, square=32, dtype="bfloat16"):
    """RoPE arguments of `head_norm`."""
    tables = {name: n(1, 1, rows, width, dtype=dtype) for name in ("rope_cos", "rope_sin")}
    return {"transformation_mat": n(1, 1, square, square)} | tables


def attention(q, k, v, **other):
    return ttnn.transformer.scaled_dot_product_attention(q, k, v, **other)


def joint_attention(*operands, strategy="rear"):
    return ttnn.transformer.joint_scaled_dot_product_attention(
        *operands, joint_strategy=strategy, program_config=program()
    )


def program(q=32, x=8, y=8):
    return ttnn.SDPAProgramConfig(compute_with_storage_grid_size=ttnn.CoreCoord(x, y), q_chunk_size=q, k_chunk_size=32)


def heads(x, **other):
    return ttnn.experimental.nlp_create_qkv_heads(x, **{"num_heads": 2} | other)


def rope(*operands):
    return ttnn.experimental.rotary_embedding_llama(*operands)


def conv(n, **other):
    right = {
        "input_tensor": n(1, 1, 256, 64),
        "weight_tensor": ttnn.from_torch(torch.ones(64, 64, 3, 3), dtype=ttnn.bfloat16),
        "device": n.device,
        "in_channels": 64,
        "out_channels": 64,
        "batch_size": 1,
        "input_height": 16,
        "input_width": 16,
        "kernel_size": (3, 3),
        "padding": (1, 1),
    }
    return ttnn.conv2d(**right | other)


# case: (call of `New`, words of the emulator)
CASES = {
    # operands
    "a host operand": (lambda n: ttnn.add(n(32, 32), host(32, 32)), "add: input_tensor_b must be on device"),
    "gelu of a host tensor": (lambda n: ttnn.gelu(host(32, 32)), "gelu: .*must be on device"),
    "gelu of a freed tensor": (lambda n: ttnn.gelu(freed(n(32, 32))), "gelu: .*deallocated"),
    "a freed operand": (lambda n: ttnn.matmul(n(32, 32), freed(n(32, 32))), "matmul: .*deallocated"),
    "reading a freed tensor": (lambda n: ttnn.to_torch(freed(n(32, 32))), "deallocated"),
    "integers": (lambda n: ttnn.silu(n(32, 32, dtype=U32)), "silu: .*got UINT32"),
    "row-major block floats": (lambda n: n(32, 32, dtype=BF8, layout=RM), "only TILE layout .* for BFLOAT8_B"),
    "casting row-major to block floats": (lambda n: ttnn.typecast(n(32, 32, layout=RM), ttnn.bfloat8_b), "only TILE"),
    "a torch dtype without counterpart": (lambda n: ttnn.from_torch(torch.ones(1, dtype=torch.float64)), "float64"),
    # elementwise
    "no broadcast": (lambda n: ttnn.add(n(1, 1, 64, 64), n(1, 1, 64, 32)), "broadcasting rule violation"),
    "mixed layouts": (lambda n: ttnn.multiply(n(32, 32), n(32, 32, layout=RM)), "mixed layouts"),
    "addcmul of mixed dtypes": (lambda n: ttnn.addcmul(n(32, 32), n(32, 32), n(1, 32, dtype=F32)), "same dtype"),
    "addcmul in row-major": (lambda n: ttnn.addcmul(*[n(32, 32, layout=RM)] * 3), "must be in Layout.TILE"),
    "addcmul of widths": (lambda n: ttnn.addcmul(n(32, 64), n(32, 64), n(1, 32)), "broadcasting rule violation"),
    # matrix products
    "inner dimensions": (lambda n: ttnn.linear(n(64, 64), n(96, 64)), "linear: inner dimensions differ: 64 and 96"),
    "row-major weights": (lambda n: ttnn.linear(n(64, 64), n(64, 64, layout=RM)), "must be in Layout.TILE"),
    "a narrow bias": (lambda n: ttnn.linear(n(64, 64), n(64, 96), bias=n(1, 64)), "bias must be"),
    "an unknown activation": (lambda n: ttnn.linear(n(64, 64), n(64, 96), activation="nope"), "unknown unary op: nope"),
    "batches": (lambda n: ttnn.matmul(n(2, 3, 33, 64), n(3, 2, 64, 96)), "batch dimensions differ"),
    "integers multiplied": (lambda n: ttnn.matmul(n(32, 32, dtype=U32), n(32, 32, dtype=U32)), "got UINT32"),
    "a grid over the device's": (
        lambda n: ttnn.linear(n(32, 32), n(32, 32), core_grid=ttnn.CoreGrid(x=9, y=1)), "larger than"),
    "no fidelity": (
        lambda n: ttnn.matmul(n(32, 32), n(32, 32), compute_kernel_config=ttnn.WormholeComputeKernelConfig()),
        "no math fidelity"),
    "minimal_matmul: K": (lambda n: minimal(n(64, 64), n(96, 64)), "K=64 and K_w=96"),
    "minimal_matmul: row-major": (lambda n: minimal(n(64, 64, layout=RM), n(64, 64)), "must be in Layout.TILE"),
    "minimal_matmul: batched weight": (lambda n: minimal(n(2, 1, 64, 64), n(2, 1, 64, 64)), "1 in all dims"),
    "minimal_matmul: bias": (lambda n: minimal(n(64, 64), n(64, 96), bias_tensor=n(1, 64)), "one row of N = 96"),
    "minimal_matmul: three parts": (lambda n: minimal([n(64, 32)] * 3, n(96, 64)), "one or two inputs"),
    "minimal_matmul: a part of partial tiles": (lambda n: minimal([n(64, 48), n(64, 48)], n(96, 64)), "whole tiles"),
    "minimal_matmul: parts of rows": (lambda n: minimal([n(64, 32), n(96, 32)], n(64, 64)), "differ in K alone"),
    "split: chunks": (lambda n: split(n(64, 64), n(64, 96), chunks=4), "does not divide into 4 chunks"),
    "split: partial tiles": (lambda n: split(n(64, 64), n(64, 96), chunks=2), "does not divide into 2 chunks"),
    "split: dimension": (lambda n: split(n(96, 64), n(64, 96), dim=0), "only dim=-1"),
    "gated: residual": (lambda n: gated(n(64, 64), n(64, 96), 1.0, n(64, 64), n(1, 96)), "tensor1 must be"),
    "gated: gate": (lambda n: gated(n(64, 64), n(64, 96), 1.0, n(64, 96), n(1, 64)), "tensor2 must be"),
    "gated: dtypes": (lambda n: gated(n(64, 64), n(64, 96, dtype=BF8), 1.0, n(64, 96), n(1, 96)), "equal bytes"),
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
    "padding of more dimensions": (lambda n: ttnn.pad(n(32, 64), padding=[(0, 32)] * 3, value=0), "3 pairs"),
    "upsampling padded tiles": (lambda n: ttnn.upsample(n(1, 16, 16, 40), 2), "tile-aligned"),
    "upsampling mode": (lambda n: ttnn.upsample(n(1, 16, 32, 32), 2, mode="cubic"), "mode must be"),
    "upsampling rank": (lambda n: ttnn.upsample(n(16, 32, 32), 2), "rank 4"),
    "embedding ids": (lambda n: ttnn.embedding(n(1, 32, dtype=F32, layout=RM), n(40, 64)), "must be UINT32"),
    "embedding weights": (
        lambda n: ttnn.embedding(n(1, 32, dtype=U32, layout=RM), n(40, 64, dtype=F32)), "weight must be"),
    # normalisation
    "norm of integers": (lambda n: ttnn.layer_norm(n(32, 32, dtype=U32)), "layer_norm: .*got UINT32"),
    "norm in row-major": (lambda n: ttnn.rms_norm(n(32, 32, layout=RM)), "must be in Layout.TILE"),
    "norm weight width": (lambda n: ttnn.rms_norm(n(32, 64), weight=n(1, 32)), "one row of 64"),
    "norm weight per batch": (lambda n: ttnn.layer_norm(n(2, 1, 32, 64), weight=n(2, 1, 1, 64)), "one row of 64"),
    "norm weight on the host": (lambda n: ttnn.layer_norm(n(32, 64), weight=host(1, 64)), "must be on device"),
    "norm residual": (lambda n: ttnn.layer_norm(n(33, 64), residual_input_tensor=n(65, 64)), "one shape"),
    "softmax dimension": (lambda n: ttnn.softmax(n(32, 32), dim=2), "out of range"),
    "group norm in place": (lambda n: group_norm(n(1, 1, 64, 64), inplace=True), "in-place"),
    "group norm groups": (lambda n: group_norm(n(1, 1, 64, 64), num_groups=30), "not divisible"),
    "group norm of block floats": (lambda n: group_norm(n(1, 1, 64, 64, dtype=BF8)), "got BFLOAT8_B"),
    "group norm dtype": (lambda n: group_norm(n(1, 1, 64, 64), dtype=ttnn.float32), "output dtype"),
    "head norm: heads of partial tiles": (lambda n: head_norm(n, n(1, 1, 64, 96)), "heads of whole tiles"),
    "head norm: one head": (lambda n: head_norm(n, n(1, 1, 64, 128), heads=1), "two heads"),
    "head norm: dtype": (lambda n: head_norm(n, n(1, 1, 64, 64, dtype=F32)), "got FLOAT32"),
    "head norm: weight dtype": (lambda n: head_norm(n, n(1, 1, 64, 64), weight=n(1, 64, dtype=F32)), "got FLOAT32"),
    "head norm: no sines": (
        lambda n: head_norm(n, n(1, 1, 64, 64), **turning(n) | {"rope_sin": None}), "go together"),
    "head norm: short tables": (lambda n: head_norm(n, n(1, 1, 64, 64), **turning(n, rows=32)), "cos and sin must be"),
    "head norm: wide tables": (lambda n: head_norm(n, n(1, 1, 64, 64), **turning(n, width=64)), "cos and sin must be"),
    "head norm: matrix": (lambda n: head_norm(n, n(1, 1, 64, 64), **turning(n, square=64)), "transformation_mat"),
    # attention
    "fp32 attention": (lambda n: attention(*[n(1, 2, 64, 32, dtype=F32)] * 3), "got FLOAT32"),
    "row-major attention": (lambda n: attention(*[n(1, 2, 64, 32, layout=RM)] * 3), "must be in Layout.TILE"),
    "attention of rank 3": (lambda n: attention(*[n(2, 64, 32)] * 3), "rank 4"),
    "causal lengths": (lambda n: attention(n(1, 2, 64, 32), *[n(1, 2, 96, 32)] * 2), "one length"),
    "key heads": (lambda n: attention(n(1, 4, 64, 32), *[n(1, 3, 64, 32)] * 2, is_causal=False), "multiple of k's"),
    "partly filled heads": (lambda n: attention(*[n(1, 2, 64, 48)] * 3, is_causal=False), "head dim"),
    "causal and mask": (lambda n: attention(*[n(1, 2, 64, 32)] * 3, attn_mask=n(1, 1, 64, 64)), "cannot both"),
    "mask shape": (
        lambda n: attention(*[n(1, 2, 64, 32)] * 3, is_causal=False, attn_mask=n(1, 2, 1, 64)), "does not fit"),
    "chunk size": (lambda n: attention(*[n(1, 2, 64, 32)] * 3, program_config=program(q=48)), "multiples of 32"),
    "attention grid": (lambda n: attention(*[n(1, 2, 64, 32)] * 3, program_config=program(x=20)), "larger than"),
    "joint strategy": (lambda n: joint_attention(*[n(1, 2, 64, 32)] * 6, strategy="front"), "'rear'"),
    "joint lengths": (
        lambda n: joint_attention(n(1, 2, 64, 32), *[n(1, 2, 96, 32)] * 2, *[n(1, 2, 64, 32)] * 3),
        "shape of its query"),
    "joint dtypes": (
        lambda n: joint_attention(*[n(1, 2, 64, 32)] * 3, *[n(1, 2, 64, 32, dtype=BF8)] * 3), "must have q's dtype"),
    "heads of partial tiles": (lambda n: heads(n(1, 1, 64, 288)), "whole tiles"),
    "heads of rank 3": (lambda n: heads(n(1, 64, 192)), "rank 4"),
    "heads in row-major": (lambda n: heads(n(1, 1, 64, 192, layout=RM)), "must be in Layout.TILE"),
    "merged heads of partial tiles": (
        lambda n: ttnn.experimental.nlp_concat_heads(n(1, 2, 64, 48)), "heads must be whole tiles"),
    "rope tables too short": (lambda n: rope(n(1, 2, 64, 64), *[n(1, 1, 32, 64)] * 2, n(1, 1, 32, 32)), "shorter"),
    "rope of partial tiles": (lambda n: rope(n(1, 2, 64, 48), *[n(1, 1, 64, 48)] * 2, n(1, 1, 32, 32)), "whole tiles"),
    "rope in fp32": (
        lambda n: rope(n(1, 2, 64, 64), *[n(1, 1, 64, 64, dtype=F32)] * 2, n(1, 1, 32, 32)), "got FLOAT32"),
    "rope matrix": (lambda n: rope(n(1, 2, 64, 64), *[n(1, 1, 64, 64)] * 2, n(1, 1, 64, 64)), "trans_mat"),
    # convolution
    "conv2d: input": (lambda n: conv(n, input_height=15), "conv2d: .*input must be"),
    "conv2d: in channels": (lambda n: conv(n, in_channels=32), "conv2d: .*input must be"),
    "conv2d: out channels": (lambda n: conv(n, out_channels=32), "conv2d: .*weight must be"),
    "conv2d: kernel": (lambda n: conv(n, kernel_size=(1, 1)), "conv2d: .*weight must be"),
    "conv2d: kernel larger than the image": (
        lambda n: conv(n, kernel_size=(5, 5), input_height=64, input_width=4, padding=(0, 0)),
        "conv2d: .*does not fit"),
    "conv2d: groups": (lambda n: conv(n, groups=2), "conv2d: .*groups"),
    "conv2d: bias": (
        lambda n: conv(n, bias_tensor=ttnn.from_torch(torch.ones(1, 1, 1, 32), dtype=ttnn.bfloat16)),
        "conv2d: .*bias must be"),
}  # fmt: skip

# Calls that no signature takes.
SIGNATURES = {
    "an unknown keyword": lambda n: ttnn.linear(n(32, 32), n(32, 32), bais=n(1, 32)),
    "gelu: the mode by position": lambda n: ttnn.gelu(n(32, 32), True),
    "layer_norm: epsilon by position": lambda n: ttnn.layer_norm(n(32, 32), 1e-6),
    "pad without a value": lambda n: ttnn.pad(n(32, 32), padding=[(0, 0), (0, 1)]),
    "minimal_matmul: bias by position": lambda n: minimal(n(32, 32), n(32, 32), n(1, 32)),
    "activations by name": lambda n: ttnn.add(n(32, 32), n(32, 32), activations=["silu"]),
    "a torch tensor": lambda n: ttnn.add(torch.ones(32, 32), n(32, 32)),
}  # fmt: skip

CRASH = "crash"  # of the process

# What real TT-NN takes, or dies of, on its mock device: what a chip would make of it is not known.
SILENT = {
    "gelu of a host tensor": CRASH,
    "gelu of a freed tensor": CRASH,
    "reading a freed tensor": CRASH,
    "a torch dtype without counterpart": CRASH,
    "conv2d: kernel larger than the image": CRASH,  # divides by zero
    # works there, and is not emulated
    "mixed layouts": "makes tiles of the row-major operand",
    "concat of layouts": "makes tiles of the row-major operand",
    "head norm: dtype": "has float32 in and out",
    "head norm: weight dtype": "takes float32",
    # TT-NN doesn't look
    "a grid over the device's": "takes any",
    "no fidelity": "takes what its own constructor makes, MathFidelity.Invalid",
    "permute of a repeated dimension": "counts them alone",
    "norm weight per batch": "reads the first row alone",
    "head norm: heads of partial tiles": "takes any width",
    "head norm: wide tables": "looks at their rows alone",
    "head norm: matrix": "takes any size",
    "joint lengths": "takes any number of keys",
    "heads of partial tiles": "makes heads 64 wide of 48 columns",
    "merged heads of partial tiles": "takes any width",
    "rope tables too short": "takes any length",
    "rope of partial tiles": "takes any width",
    "conv2d: kernel": "believes kernel_size, not the weight",
    "conv2d: groups": "takes a weight for one group",
}
