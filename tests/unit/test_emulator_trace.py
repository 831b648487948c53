"""Traces of the emulated device: what is captured, what a replay does, and what is refused."""

import pytest
import torch

import tt_flux_kontext.emulator as ttnn

TILE = ttnn.TILE_LAYOUT


@pytest.fixture(params=["n150", "t3k"])
def device(request):
    ttnn.configure(request.param)
    device = ttnn.open_mesh_device(ttnn.MeshShape(2, 4) if request.param == "t3k" else None)
    yield device
    ttnn.close_mesh_device(device)
    ttnn.configure()


def put(values, device, dtype=ttnn.float32):
    return ttnn.from_torch(values, dtype, layout=TILE, device=device)


def write(values, to) -> None:
    ttnn.copy_host_to_device_tensor(ttnn.from_torch(values, to.dtype, layout=TILE), to)


def read(tensor) -> list[torch.Tensor]:
    """What each chip has."""
    return list(map(ttnn.to_torch, ttnn.get_device_tensors(tensor)))


def holds(tensor, values) -> bool:
    return all(torch.equal(shard, values) for shard in read(tensor))


def captured(device, work):
    """A trace of what ran once before, and what the work returned in the capture."""
    work()
    trace = ttnn.begin_trace_capture(device, cq_id=0)
    result = work()
    ttnn.end_trace_capture(device, trace, cq_id=0)
    return trace, result


def allocated(device):
    return ttnn.get_memory_view(device, ttnn.BufferType.DRAM).total_bytes_allocated_per_bank


def test_a_replay_reads_what_is_in_the_captured_tensors(device):
    x, y = put(torch.ones(32, 64), device), put(torch.ones(64, 32), device)
    trace, product = captured(device, lambda: ttnn.multiply(ttnn.matmul(x, y), 0.5))
    for value in (2.0, 3.0):
        write(torch.full((32, 64), value), x)
        ttnn.execute_trace(device, trace, cq_id=0, blocking=False)
        assert holds(product, torch.full((32, 32), 32 * value))


def test_a_capture_does_nothing(device):
    """Neither to what there was before, nor to what it makes."""
    x = put(torch.ones(32, 32), device)
    total = put(torch.zeros(32, 32), device)

    def work():
        ttnn.add(total, x, output_tensor=total)
        return ttnn.add(x, total)

    trace, result = captured(device, work)
    assert holds(total, torch.ones(32, 32))  # of the run before
    assert all(shard.isnan().all() for shard in read(result))
    for times in (2, 3):
        ttnn.execute_trace(device, trace)
        assert holds(total, torch.full((32, 32), float(times)))
        assert holds(result, torch.full((32, 32), times + 1.0))


def test_a_trace_takes_no_memory_but_of_what_lives_on(device):
    x = put(torch.ones(32, 32), device)
    before = allocated(device)
    trace, result = captured(device, lambda: ttnn.silu(ttnn.silu(ttnn.silu(x))))
    one = allocated(device) - before
    ttnn.execute_trace(device, trace)
    assert allocated(device) == before + one
    del result
    assert allocated(device) == before


def test_what_a_capture_makes_and_writes_to(device):
    """And a result that was given back after the capture."""
    x = put(torch.ones(32, 32), device)

    def work():
        total = ttnn.add(x, x)
        return ttnn.add(total, x, output_tensor=total), ttnn.silu(total)

    trace, (total, given_back) = captured(device, work)
    ttnn.deallocate(given_back)
    for value in (1.0, 2.0):
        write(torch.full((32, 32), value), x)
        ttnn.execute_trace(device, trace)
        assert holds(total, torch.full((32, 32), 3 * value))


def test_two_traces_over_one_another(device):
    x, y = (put(torch.full((32, 32), value), device) for value in (1.0, 2.0))
    result = put(torch.zeros(32, 32), device)
    traces = [captured(device, lambda each=each: ttnn.add(each, each, output_tensor=result))[0] for each in (x, y)]
    for trace, value in zip(traces + traces, (2.0, 4.0, 2.0, 4.0)):
        ttnn.execute_trace(device, trace)
        assert holds(result, torch.full((32, 32), value))


def test_what_a_later_trace_made_is_overwritten(device):
    """But for what was there before the capture it may be anything, until that trace is replayed."""
    x = put(torch.ones(32, 32), device)
    first, doubled = captured(device, lambda: ttnn.multiply(x, 2.0))
    second, tripled = captured(device, lambda: ttnn.multiply(x, 3.0))
    ttnn.execute_trace(device, second)
    assert holds(tripled, torch.full((32, 32), 3.0))
    ttnn.execute_trace(device, first)
    assert all(shard.isnan().all() for shard in read(tripled))
    ttnn.execute_trace(device, second)
    assert holds(doubled, torch.full((32, 32), 2.0)) and holds(tripled, torch.full((32, 32), 3.0))
    ttnn.release_trace(device, second)
    with pytest.raises(RuntimeError, match="may overwrite what was allocated after the capture"):
        ttnn.execute_trace(device, first)


def test_a_convolution_is_captured_with_the_weights_that_it_prepared():
    device = ttnn.open_mesh_device(ttnn.MeshShape(1, 1), l1_small_size=32768)
    x = ttnn.from_torch(torch.ones(1, 1, 64, 32), ttnn.bfloat16, layout=TILE, device=device)
    weights = {"weight_tensor": ttnn.from_torch(torch.ones(32, 32, 1, 1), ttnn.bfloat16)}
    sizes = {"in_channels": 32, "out_channels": 32, "batch_size": 1, "input_height": 8, "input_width": 8}

    def work():
        made, (weights["weight_tensor"], _) = ttnn.conv2d(
            input_tensor=x, device=device, kernel_size=(1, 1), return_weights_and_bias=True, **sizes, **weights
        )
        return made

    trace, made = captured(device, work)
    ttnn.execute_trace(device, trace)
    assert holds(made, torch.full((1, 1, 64, 32), 32.0))
    weights["weight_tensor"] = ttnn.from_torch(torch.ones(32, 32, 1, 1), ttnn.bfloat16)
    ttnn.begin_trace_capture(device)
    with pytest.raises(RuntimeError, match="writes are not supported during trace capture"):
        work()
    ttnn.close_mesh_device(device)


def test_what_is_different_on_the_chips():
    """A trace on several chips, with a collective whose semaphores and buffers take turns."""
    ttnn.configure("n300")
    ttnn.set_fabric_config(ttnn.FabricConfig.FABRIC_1D)
    mesh = ttnn.open_mesh_device(ttnn.MeshShape(1, 2))
    mapper = ttnn.create_mesh_mapper(mesh, ttnn.MeshMapperConfig([ttnn.PlacementReplicate(), ttnn.PlacementShard(3)]))
    x = ttnn.from_torch(torch.ones(1, 1, 32, 64), ttnn.float32, layout=TILE, device=mesh, mesh_mapper=mapper)
    trace, total = captured(mesh, lambda: ttnn.all_reduce(ttnn.multiply(x, 2.0), cluster_axis=1))
    values = torch.cat([torch.full((1, 1, 32, 32), value) for value in (1.0, 3.0)], 3)
    ttnn.copy_host_to_device_tensor(ttnn.from_torch(values, ttnn.float32, layout=TILE, mesh_mapper=mapper), x)
    ttnn.execute_trace(mesh, trace)
    assert holds(total, torch.full((1, 1, 32, 32), 8.0))
    ttnn.close_mesh_device(mesh)
    ttnn.set_fabric_config(ttnn.FabricConfig.DISABLED)
    ttnn.configure()


def refused(match: str):
    return pytest.raises(RuntimeError, match=match)


@pytest.fixture
def silu(device):
    """Something to capture, that has run before."""
    x = put(torch.ones(32, 32), device)
    ttnn.silu(x)
    return lambda: ttnn.silu(x)


class TestRefusals:
    @pytest.mark.parametrize(
        "what,match",
        [
            (lambda device, x: put(torch.ones(32, 32), device), "writes are not supported during trace capture"),
            (lambda device, x: write(torch.ones(32, 32), x), "writes are not supported"),
            (lambda device, x: ttnn.zeros((32, 32), device=device), "writes are not supported"),
            (lambda device, x: ttnn.create_global_semaphore(device, ttnn.CoreRangeSet(), 0), "writes are not"),
            (lambda device, x: ttnn.to_torch(x), "reads are not supported during trace capture"),
            (lambda device, x: ttnn.from_device(x), "reads are not supported"),
            (lambda device, x: ttnn.dump_tensor("x.tensorbin", x), "reads are not supported"),
            (lambda device, x: ttnn.synchronize_device(device), "waiting is not supported during trace capture"),
            (lambda device, x: ttnn.begin_trace_capture(device), "a capture is going on"),
            (lambda device, x: ttnn.relu(x), r"relu: did not run in this form before .*: relu\(\(\[32, 32\] FLOAT32"),
            (lambda device, x: ttnn.multiply(x, 0.25), "multiply: did not run in this form before"),
        ],
    )
    def test_in_a_capture(self, device, what, match):
        x = put(torch.ones(32, 32), device)
        ttnn.multiply(x, 0.5)  # the number would be captured, and the next one go unnoticed
        trace = ttnn.begin_trace_capture(device)
        with refused(match):
            what(device, x)
        ttnn.end_trace_capture(device, trace)

    def test_an_operand_that_is_not_the_captured_one(self, device):
        x = put(torch.ones(32, 32), device)
        trace, result = captured(device, lambda: ttnn.silu(x))
        x = put(torch.zeros(32, 32), device)
        with refused(r"silu: an operand \[32, 32\] FLOAT32 is no longer there: write new values into the tensor"):
            ttnn.execute_trace(device, trace)

    def test_an_operand_that_was_deallocated(self, device):
        x = put(torch.ones(32, 32), device)
        trace, result = captured(device, lambda: ttnn.silu(x))
        ttnn.deallocate(x)
        with refused("no longer there"):
            ttnn.execute_trace(device, trace)

    def test_a_buffer_that_was_allocated_after_the_capture_and_lives_on(self, device, silu):
        trace, result = captured(device, silu)
        for late in (put(torch.ones(64, 32), device), ttnn.silu(result)):
            with refused(r"32\]: the replay may overwrite what was allocated after the capture and lives on"):
                ttnn.execute_trace(device, trace)
            ttnn.deallocate(late)
        late = [put(torch.ones(64, 32), device)]
        late.append(late)  # which only the garbage collector frees
        del late
        ttnn.execute_trace(device, trace)
        ttnn.release_trace(device, trace)

    def test_a_trace_that_is_not_there(self, device, silu):
        trace, result = captured(device, silu)
        ttnn.release_trace(device, trace)
        for call in (ttnn.execute_trace, ttnn.release_trace):
            with refused("the device has no such trace"):
                call(device, trace)
        with refused("is not being captured"):
            ttnn.end_trace_capture(device, trace)

    def test_a_replay_in_a_capture(self, device, silu):
        trace, result = captured(device, silu)
        other = ttnn.begin_trace_capture(device)
        with refused("execute_trace: not supported during trace capture"):
            ttnn.execute_trace(device, trace)
        ttnn.end_trace_capture(device, other)


def test_a_trace_region_is_taken_from_dram():
    """As much as TT-NN's mock device of an N150 takes."""
    device = ttnn.open_mesh_device(trace_region_size=50_000_000, num_command_queues=2)
    assert ttnn.get_memory_view(device, ttnn.BufferType.DRAM).total_bytes_per_bank == 1_068_523_456
    ttnn.close_mesh_device(device)
