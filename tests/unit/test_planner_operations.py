"""What the planner reads from graph captures: of one chip and of meshes."""

import pytest

from tt_flux_kontext.planner.operations import Operation, Peaks, Place, operations, peaks

RING = "RingJointSDPADeviceOperation"
MiB = 2**20


def place(*shape: int, dtype: str = "BFLOAT16", tiled: bool = True) -> Place:
    return Place(shape, dtype, tiled, dram=True)


def operation(name: str, inputs: list[Place], outputs: list[Place]) -> Operation:
    return Operation(name, "", tuple(inputs), tuple(outputs), "HiFi2")


def rows(count: int) -> Place:
    """Of a map of 64 columns and 128 channels."""
    return place(1, count, 64, 128, tiled=False)


# (chips, bytes that one of them gets), by the shapes that TT-NN 0.81.1 has in its captures.
HALF, WHOLE = place(1, 1, 1024, 512), place(1, 1, 1024, 1024)  # 1 and 2 MiB
EXCHANGES = {
    "gather": (operation("AllGatherDeviceOperation", [HALF], [place(1, 1, 1024, 2048)]), 4, 3 * MiB),
    "gather of parts of tiles": (operation("AllBroadcastDeviceOperation", [HALF], [HALF] * 4), 4, 3 * MiB),
    "scatter": (operation("ReduceScatterDeviceOperation", [WHOLE], [place(2, 1, 1024, 1024), HALF]), 2, MiB),
    "small scatter": (
        operation("ReduceScatterMinimalDirectDeviceOperation", [WHOLE], [HALF, place(48, 16384, dtype="UINT8")]),
        2,
        MiB,
    ),
    "gather inside a product": (
        operation(
            "AllGatherMinimalMatmulAsyncOp",
            [HALF, place(1024, 768), place(1, 768), WHOLE],
            [WHOLE, *[place(1, 1, 1024, 256)] * 3],
        ),
        2,
        MiB,
    ),
    "scatter inside a product": (
        operation(
            "MinimalMatmulStridedReduceScatterAsync",
            [place(1, 1, 1024, 256), place(256, 1024), place(1, 1024), HALF, place(1, 1, 1, 512)],
            [WHOLE, WHOLE, HALF],
        ),
        2,
        MiB,
    ),
    "statistics of a norm": (
        operation(
            "DitFusedDistributedRmsnormDeviceOperation",
            [HALF, place(1, 1, 1, 512), place(1, 1, 1, 512)],
            [HALF, place(1, 1, 8, 1024, dtype="FLOAT32", tiled=False)],
        ),
        2,
        16 * 1024,
    ),
    "rows of both neighbours": (
        operation("NeighborPadAsyncDeviceOperation", [rows(128)], [rows(130)]),
        2,
        64 * 128 * 2,
    ),
    "a row of one neighbour": (
        operation("NeighborPadAsyncDeviceOperation", [rows(128)], [rows(129)]),
        2,
        64 * 128 * 2,
    ),
    "alone": (operation("MinimalMatmulDeviceOperation", [HALF, place(512, 1024)], [WHOLE]), 1, 0),
}


@pytest.mark.parametrize("name", EXCHANGES)
def test_what_chips_exchange(name):
    found, chips, link_bytes = EXCHANGES[name]
    assert (found.chips, found.link_bytes) == (chips, link_bytes)
    assert found.only_moves == (chips > 1 and "product" not in name and "norm" not in name)


def ring_attention(chips: int, rows: int, text: int = 0, split_text: bool = False) -> Operation:
    """Of `rows` a chip, and of as many text rows, in 6 heads of 128."""
    image, joint = place(1, 6, rows, 128), place(1, 6, text, 128)
    inputs = [image] * 3 + ([joint] * 3 if text else []) + [place(1, 6, chips * rows, 128)] * 2
    if split_text:
        inputs += [place(1, 6, chips * text, 128)] * 2
    return operation(RING, inputs, [image, joint, place(1, 6, 2 * rows, 1)])


@pytest.mark.parametrize(
    "found,queries,keys,sent_rows",
    [
        (ring_attention(4, 2176), 2176, 4 * 2176, 2176),
        (ring_attention(4, 2048, text=512), 2048 + 512, 4 * 2048 + 512, 2048),
        (ring_attention(4, 2048, text=128, split_text=True), 2048 + 128, 4 * (2048 + 128), 2048 + 128),
    ],
    ids=["one sequence", "text whole on each chip", "text split"],
)
def test_ring_attention_has_its_own_queries_and_all_keys(found, queries, keys, sent_rows):
    assert found.flop == 4 * 6 * 128 * queries * keys
    assert sum(query.shape[2] for query in found.queries) == queries
    assert found.chips == 4 and found.link_bytes == 2 * 3 * 6 * sent_rows * 128 * 2  # K and V of three others


def test_products_with_collectives_inside_count_their_own_outputs():
    assert EXCHANGES["gather inside a product"][0].flop == 2 * 1024 * 1024 * 768
    assert EXCHANGES["scatter inside a product"][0].flop == 2 * 1024 * 256 * 1024


class Capture:
    """Nodes of a graph capture, as far as the planner looks at them."""

    def __init__(self):
        self.nodes = []

    def add(self, kind: str, connections=(), arguments=(), **params) -> int:
        number = len(self.nodes)
        self.nodes.append(
            dict(
                counter=number, node_type=kind, params=params, connections=list(connections), arguments=list(arguments)
            )
        )
        return number

    def tensor(self, *shape: int, users=()) -> int:
        description = dict(
            shape=f"Shape({list(shape)})", dtype="DataType::BFLOAT16", layout="Layout::TILE", buffer_type=0
        )
        return self.add("tensor", users, **description)

    def call(self, name: str, arguments: str, inputs: list[tuple[int, ...]], output: tuple[int, ...]) -> None:
        """A Python function and the device operation in it, named as it."""
        self.add("function_start", name=f"ttnn.{name}")
        start = self.add("function_start", arguments=[arguments], name=name, program_cache_hit=True)
        for shape in inputs:
            self.tensor(*shape, users=[start])
        self.add("function_start", name="tt::tt_metal::create_device_tensor")
        self.add("function_end", name="tt::tt_metal::create_device_tensor")
        out = self.tensor(*output)
        self.add("function_end", [out], name=name)
        self.add("function_end", name=f"ttnn.{name}")


def test_operations_are_what_runs_a_program():
    capture = Capture()
    capture.call("MinimalMatmulDeviceOperation", "Params(math_fidelity=HiFi2, ...)", [(64, 32), (32, 96)], (64, 96))
    capture.call("LayerNormDeviceOperation", "Params(math_fidelity=HiFi3, ...)", [(64, 96)], (64, 96))
    capture.call(RING, "<RingJointSDPAParams>", [(1, 1, 64, 32)] * 3 + [(1, 1, 128, 32)] * 2, (1, 1, 64, 32))
    capture.call("AllGatherMinimalMatmulAsyncOp", "<Params>", [(64, 32), (64, 96), (64, 64)], (64, 64))
    capture.call("TransposeDeviceOperation", "Params(...)", [(64, 96)], (96, 64))
    product, norm, attention, gather, transpose = operations(capture.nodes)
    assert product.inputs == (place(64, 32), place(32, 96)) and product.outputs == (place(64, 96),)
    assert product.call == "ttnn.MinimalMatmulDeviceOperation" and norm.name == "LayerNormDeviceOperation"
    fidelities = [each.fidelity for each in (product, norm, attention, gather, transpose)]
    assert fidelities == ["HiFi2", "HiFi3", "HiFi2", "HiFi2", "HiFi4"]


def test_memory_of_a_mesh_is_that_of_one_chip():
    """A buffer is reported once; the buffers of programs for each chip."""
    capture = Capture()
    capture.add("buffer_allocate", type="DRAM", size=1000, device_id=0)
    for size in (40, 60):
        for chip in (4, 0, 2):
            capture.add("circular_buffer_allocate", size=size, globally_allocated="0", device_id=chip)
    capture.add("circular_buffer_allocate", size=7, globally_allocated="1", device_id=4)
    capture.add("circular_buffer_deallocate_all", device_id=0)
    capture.add("circular_buffer_allocate", size=90, globally_allocated="0", device_id=2)
    assert peaks(capture.nodes) == Peaks(dram=1000, l1=100, operations=[])


def test_memory_of_an_operation_is_what_is_in_use_until_the_next_one():
    capture = Capture()
    capture.add("buffer_allocate", type="DRAM", size=1000)  # weights
    capture.add("function_start", arguments=[""], name="MatmulDeviceOperation", program_cache_hit=True)
    capture.add("buffer_allocate", type="DRAM", size=300)
    capture.add("function_end", name="MatmulDeviceOperation")
    capture.add("buffer_allocate", type="DRAM", size=50)
    capture.add("buffer_deallocate", type="DRAM", size=250)
    capture.add("function_start", arguments=[""], name="ttnn.deallocate")
    capture.add("function_end", name="ttnn.deallocate")
    capture.add("function_start", arguments=[""], name="LayerNormDeviceOperation", program_cache_hit=True)
    capture.add("function_end", name="LayerNormDeviceOperation")
    capture.add("buffer_deallocate", type="DRAM", size=1100)
    assert peaks(capture.nodes) == Peaks(dram=1350, l1=0, operations=[1350, 1100])
