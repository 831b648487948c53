"""Attention over a sequence that is split over the chips of a line or a ring.

Each chip attends from its own queries to one chip's keys after another: its own first, then those that arrive from both
sides. With an fp32 destination every such step ends in a whole attention: its results, divided, and the logarithm of
its sums of exponentials (LSE) are rounded to bf16, and weigh the next step's against them. An LSE around 8 is a 32nd
off then, and so are the weights: in HiFi3 results are 0.8 % off on 2 chips, 1.1 % on 4, 1.6 to 2 % on 8, next to 0.3 %
on one. With a bf16 destination maxima, sums and results pass undivided from step to step, as within a chip.

Sources: TT-NN 0.81.1's kernels ``ring_joint_sdpa.cpp``, ``compute_common.hpp`` and ``ring_id_sequencer.hpp``, and the
formats that the library compiles them with. No results of theirs were at hand.
"""

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

from .attention import PACKED, check_heads, check_program, method_of, streaming
from .checks import check, check_operands, check_padding, describe
from .collectives import checked_axis
from .device import MeshDevice
from .flash_attention import KeysValues, Method, Running, attend, blocks, divide, is_grouped, over_chunks, total
from .formats import aligned_sum, as_multiplied, round_to_bf16_
from .matrix_unit import multiply
from .mesh import MeshTensor, lines
from .semaphores import GlobalSemaphore, take_turn
from .tensor import Tensor, device_tensor
from .types import (
    TILE_SIZE,
    BufferType,
    CoreCoord,
    DataType,
    FabricConfig,
    SDPAProgramConfig,
    Topology,
    WormholeComputeKernelConfig,
)

Share = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""A chip's queries, keys and values of a sequence, ``[H, rows, D]`` each."""


def ring_joint_scaled_dot_product_attention(
    input_tensor_q: Tensor,
    input_tensor_k: Tensor,
    input_tensor_v: Tensor,
    joint_tensor_q: Tensor | None = None,
    joint_tensor_k: Tensor | None = None,
    joint_tensor_v: Tensor | None = None,
    *,
    persistent_output_buffer_k: Tensor,
    persistent_output_buffer_v: Tensor,
    joint_strategy: str,
    logical_n: int,
    logical_l: int = 0,
    program_config: SDPAProgramConfig,
    scale: float | None = None,
    compute_kernel_config: WormholeComputeKernelConfig | None = None,
    dim: int,
    multi_device_global_semaphore: Sequence[GlobalSemaphore],
    num_links: int,
    cluster_axis: int,
    mesh_device: MeshDevice,
    topology: Topology,
    ccl_core_grid_offset: CoreCoord,
    persistent_output_buffer_joint_k: Tensor | None = None,
    persistent_output_buffer_joint_v: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention over a sequence of which each chip along an axis has q, k and v ``[B, H, rows, D]``.

    A joint sequence ``[B, H, L, D]`` may follow it: all of it on each chip, or a share where ``logical_l`` is the
    length of all shares. Rows from ``logical_n`` on, the last chip's, are padding, whose keys nothing sees. What other
    chips send comes into the buffers ``[B, H, chips * rows, D]``, and that of joint shares into buffers likewise.

    Returns the results of the chip's queries, of its joint queries (no rows without), and what the kernel kept its
    statistics in. Raises RuntimeError for an axis of one chip, without a fabric, without a ring that is asked for;
    for other shapes and dtypes, rows that fill no tile, padding before the last chip's rows; for cores that both attend
    and send (two a link, in a row from the offset on); for semaphores and buffers used twice in a row.
    """
    op, q = "ring_joint_scaled_dot_product_attention", input_tensor_q
    joint = (joint_tensor_q, joint_tensor_k, joint_tensor_v)
    check(joint.count(None) in (0, 3), op, "joint tensors must be given all together, or none")
    sequences = [(q, input_tensor_k, input_tensor_v)] + ([] if None in joint else [joint])
    buffers = [(persistent_output_buffer_k, persistent_output_buffer_v)]
    joint_is_split = len(sequences) > 1 and logical_l > joint_tensor_q.shape[2]
    if joint_is_split:
        buffers.append((persistent_output_buffer_joint_k, persistent_output_buffer_joint_v))
    _check_operands(op, sequences, buffers)
    axis = checked_axis(op, q, cluster_axis)
    check(mesh_device is q.device(), op, "the mesh device must be the tensors'")
    chips = mesh_device.shape[axis]
    _check_shapes(op, sequences, buffers, chips)
    _check_lengths(op, sequences, chips, logical_n, logical_l, joint_is_split)
    _check_cores(op, q, program_config, num_links, ccl_core_grid_offset)
    check(joint_strategy == "rear", op, f"joint strategy must be 'rear', got {joint_strategy!r}")
    check(dim in (2, -2), op, f"only rows can be gathered, got dim {dim}")
    is_ring = mesh_device.fabric is FabricConfig.FABRIC_1D_RING and (mesh_device.rings[axis] or chips == 2)
    check(topology is Topology.Linear or is_ring, op, f"axis {axis} of {mesh_device.shape} is no ring")
    semaphores = list(multi_device_global_semaphore)
    check(len(semaphores) == len(set(semaphores)) == 2, op, "two different semaphores are needed")
    take_turn(op, mesh_device, semaphores, [buffer for pair in buffers for buffer in pair])

    method = method_of(q, scale, program_config, compute_kernel_config)
    method = method._replace(wide=True) if method.config.fp32_dest_acc_en else streaming(method)
    results, done = {}, {}
    for line in lines(mesh_device.shape, axis):
        shards = [[[tensor.shards[i] for tensor in share] for share in sequences] for i in line]
        key = tuple(shard.address for shares in shards for share in shares for shard in share)
        if key not in done:
            done[key] = list(_of_samples(shards, logical_n, joint_is_split, topology is Topology.Ring, method))
        results |= zip(line, done[key])
    by_kind = zip(*(results[chip] for chip in range(len(q.shards))))
    return tuple(
        MeshTensor(
            [device_tensor(x, shard, dtype=DataType.BFLOAT16) for x, shard in zip(parts, like.shards)], mesh_device
        )
        for parts, like in zip(by_kind, (q, sequences[-1][0], q))
    )


def _check_operands(op, sequences, buffers) -> None:
    tensors = {
        f"{kind}_tensor_{name}": tensor
        for kind, share in zip(("input", "joint"), sequences)
        for name, tensor in zip("qkv", share)
    }
    tensors |= {
        f"persistent_output_buffer_{kind}{name}": tensor
        for kind, pair in zip(("", "joint_"), buffers)
        for name, tensor in zip("kv", pair)
    }
    missing = [name for name, tensor in tensors.items() if tensor is None]
    check(not missing, op, f"shares of a joint sequence need buffers: {', '.join(missing)}")
    check_operands(op, **tensors)
    check_heads(op, PACKED, tensors)
    check_padding(
        op, **{name: tensor for name, tensor in tensors.items() if name in ("joint_tensor_k", "joint_tensor_v")}
    )
    dtype = sequences[0][0].dtype
    for name, tensor in tensors.items():
        check(tensor.dtype is dtype, op, f"{name} must have q's dtype {dtype.name}, got {describe(tensor)}")
        check(tensor.memory_config().buffer_type is BufferType.DRAM, op, f"{name} must be in DRAM")
    distinct = len({id(buffer) for pair in buffers for buffer in pair})
    check(distinct == 2 * len(buffers), op, "each persistent buffer must be a tensor of its own")


def _check_shapes(op, sequences, buffers, chips) -> None:
    """Refuse other shapes than the queries', other heads than theirs, and buffers that are not for all chips' rows."""
    batch, heads, rows, width = sequences[0][0].shape
    check(rows % TILE_SIZE == 0, op, f"a chip's rows must fill tiles, got {rows}")
    for share in sequences:
        shape = [batch, heads, share[0].shape[2], width]
        for tensor in share:
            check(list(tensor.shape) == shape, op, f"queries, keys and values must be {shape}, got {describe(tensor)}")
    for share, pair in zip(sequences, buffers):
        shape = [batch, heads, share[0].shape[2] * chips, width]
        for buffer in pair:
            check(list(buffer.shape) == shape, op, f"persistent buffers must be {shape}, got {describe(buffer)}")


def _check_lengths(op, sequences, chips, logical_n, logical_l, joint_is_split) -> None:
    rows, *joint_rows = (share[0].shape[2] for share in sequences)
    # A chip without a key of its own would begin with what was in memory.
    ends = (chips - 1) * rows < logical_n <= chips * rows
    check(ends, op, f"logical_n must end within the last of {chips} shares of {rows} rows, got {logical_n}")
    if joint_is_split:
        (share,) = joint_rows
        check(share % TILE_SIZE == 0, op, f"a chip's joint rows must fill tiles, got {share}")
        check(logical_l == chips * share, op, f"logical_l must be {chips} shares of {share} rows, got {logical_l}")
    elif joint_rows:
        check(logical_l in (0, *joint_rows), op, f"logical_l must be the joint rows {joint_rows}, got {logical_l}")


def _check_cores(op, q, program, links, offset) -> None:
    """Refuse senders that are not in the grid, or where attention is."""
    check_program(op, q, program)
    grid, senders = q.device().compute_with_storage_grid_size(), 2 * links
    check(links > 0, op, f"num_links must be positive, got {links}")
    fits = offset.y < grid.y and offset.x + senders <= grid.x
    check(fits, op, f"{senders} senders from {offset} on are not in a row of the {grid.x}x{grid.y} grid")
    apart = offset.y >= program.compute_with_storage_grid_size.y
    check(apart, op, f"the grid of attention overlaps the senders from {offset} on")


def _of_samples(shards, logical_n: int, joint_is_split: bool, ring: bool, method: Method):
    """Each chip's results ``[B, H, rows, D]``, joint results and statistics."""
    samples = []
    for b in range(shards[0][0][0].shape[0]):
        chips = [[tuple(shard.values[b] for shard in share) for share in shares] for shares in shards]
        samples.append(ring_attention(chips, logical_n, joint_is_split, ring, method))
    for of_chip in zip(*samples):
        out, *joint_out = (torch.stack(parts) for parts in zip(*of_chip))
        rows = sum(math.ceil(x.shape[2] / TILE_SIZE) * TILE_SIZE for x in (out, *joint_out))
        statistics = out.new_full((*out.shape[:2], 2 * rows, 1), math.nan)
        yield out, *(joint_out or [out[:, :, :0]]), statistics


def ring_attention(
    chips: list[list[Share]], logical_n: int, joint_is_split: bool, ring: bool, method: Method
) -> Iterator[list[torch.Tensor]]:
    """Results of each chip's queries, and of its joint ones if it has any, bf16.

    Args:
        chips: by place, each chip's share of the sequence, and maybe of the joint one; shapes are the same on all.
        logical_n: tokens of the whole sequence, that end in the last share.
        joint_is_split: chips have shares of the joint sequence, not all of it.
        ring: whether the line of chips closes.
    """
    last, steps = len(chips) - 1, []
    for place, ((_, k, v), *joint) in enumerate(chips):
        real = logical_n - place * k.shape[1]
        # A joint sequence that every chip has is taken with the last chip's keys.
        others = [(k, v) for _, k, v in joint if joint_is_split or place == last]
        steps.append([(k[:, :real], v[:, :real]), *others])
    for place, shares in enumerate(chips):
        visited = [steps[other] for other in visits(place, len(chips), ring)]
        yield [_from_step_to_step(q, visited, method) for q, _, _ in shares]


def visits(place: int, size: int, ring: bool) -> list[int]:
    """Whose keys a chip takes: its own, then those of the chips after and before it by turns, the nearest first.

    On a ring of even size the opposite chip's come from before it.
    """
    after = (size - 1) // 2 if ring else size - 1 - place
    before = size - 1 - after
    places = [place]
    for distance in range(1, size):
        places += [place + distance] * (distance <= after) + [place - distance] * (distance <= before)
    return [other % size for other in places]


def _from_step_to_step(q: torch.Tensor, steps: list[list[KeysValues]], method: Method) -> torch.Tensor:
    out = torch.empty_like(q, dtype=torch.bfloat16)
    if not method.wide:
        attend(q, [sequence for step in steps for sequence in step], method, out, DataType.BFLOAT16)
        return out
    # As many terms as the same attention on one chip.
    keys = sum(k.shape[1] for step in steps for k, _ in step)
    method = method._replace(grouped=is_grouped(q, keys * len(steps)))
    log_sums = torch.empty(*q.shape[:2], 1, device=q.device)
    for index, sequences in enumerate(steps):
        for heads, rows, queries, chunks in blocks(q, sequences, method):
            result, log_sum = _finish(over_chunks(queries, chunks, method), method)
            if index:
                before = out[heads, rows].to(torch.float32), log_sums[heads, rows]
                result, log_sum = _merge(*before, result, log_sum, method)
            out[heads, rows], log_sums[heads, rows] = result, log_sum
    return out


def _finish(running: Running, method: Method) -> tuple[torch.Tensor, torch.Tensor]:
    """A step's result, divided, and LSE: fp32, rounded to bf16."""
    sums, fidelity = total(running, method), method.config.math_fidelity
    scale = running.maximum.new_tensor(method.bf16_scale)
    maximum = round_to_bf16_(multiply(running.maximum, scale, fidelity))
    log_sum = round_to_bf16_(aligned_sum(maximum, round_to_bf16_(as_multiplied(sums).log())))
    return round_to_bf16_(divide(running.result, sums, method)), log_sum


def _merge(result, log_sum, new_result, new_log_sum, method: Method) -> tuple[torch.Tensor, torch.Tensor]:
    """Result and LSE of the steps so far with one more."""
    difference = aligned_sum(new_log_sum, -log_sum)
    share = round_to_bf16_(torch.sigmoid(difference))
    change = round_to_bf16_(aligned_sum(result, -new_result))
    change = round_to_bf16_(multiply(change, share, method.config.math_fidelity))
    # The vector unit's softplus for bf16 ends at 5.
    growth = F.softplus(difference).where(difference.abs() <= 5, difference.clamp(min=0))
    return round_to_bf16_(aligned_sum(result, -change)), round_to_bf16_(aligned_sum(log_sum, round_to_bf16_(growth)))
