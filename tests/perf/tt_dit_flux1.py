"""The device operations of a FLUX.1 step in tt-metal's tt_dit, to hold the model of time against its public figures.

Of `models/tt_dit/models/transformers/transformer_flux1.py` and the blocks under it, as they were in 2026: a picture of
1024 x 1024 from text, bfloat16, HiFi2. TP splits features and heads; SP splits the image, and every chip has all text.
"""

from tt_flux_kontext.planner.operations import JOINT_ATTENTION, RING_ATTENTION, Operation, Place

DIM, HEADS, HEAD, HIDDEN = 3072, 24, 128, 4 * 3072
TEXT, IMAGE = 512, 4096  # tokens
DOUBLE_BLOCKS, SINGLE_BLOCKS = 19, 38
STATISTICS = 64  # columns of a norm's sums, of each chip


def step(sp: int, tp: int) -> list[Operation]:
    streams = (IMAGE // sp, TEXT)  # rows
    width = DIM // tp
    done = []

    def run(name, inputs, outputs):
        done.append(Operation(name, "", tuple(inputs), tuple(outputs), "HiFi2"))

    def pointwise(shape, inputs=2):
        run("BinaryNgDeviceOperation", [_place(*shape)] * inputs, [_place(*shape)])

    def gather(rows, columns=width):
        run("AllGatherDeviceOperation", [_place(rows, columns)], [_place(rows, columns * tp)])

    def product(rows, inner, columns):
        operands = [_place(rows, inner), _place(inner, columns), _place(1, columns)]
        run("MinimalMatmulDeviceOperation", operands, [_place(rows, columns)])

    def scatter(rows):
        run("ReduceScatterDeviceOperation", [_place(rows, DIM)], [_place(2 * rows, DIM), _place(rows, width)])

    def modulation(vectors):
        product(1, DIM, vectors * width)
        for _ in range(vectors):
            run("SliceDeviceOperation", [_place(1, vectors * width)], [_place(1, width)])
        for _ in range(vectors // 3):
            pointwise((1, width), inputs=1)  # 1 + scale

    def norm(rows):
        run("LayerNormDeviceOperation", [_place(rows, width)], [_place(rows, STATISTICS)])
        gather(rows, STATISTICS)
        run("LayerNormDeviceOperation", [_place(rows, width), _place(rows, tp * STATISTICS)], [_place(rows, width)])
        gather(rows)

    def query_key_value(rows):
        product(rows, DIM, 3 * width)
        heads = (HEADS // tp, rows, HEAD)
        run("NlpCreateHeadsDeviceOperation", [_place(rows, 3 * width)], [_place(*heads)] * 3)
        for _ in "query", "key":
            pointwise(heads, inputs=1)  # norm
            for _ in "x cos", "turned", "turned sin", "sum":
                pointwise(heads)

    def attention():
        image, text = (_place(1, HEADS // tp, rows, HEAD) for rows in streams)
        gathered = [_place(1, HEADS // tp, IMAGE, HEAD)] * 2
        if sp > 1:
            run(RING_ATTENTION, [image] * 3 + [text] * 3 + gathered, [image, text])
        else:
            done.append(joint_attention(HEADS // tp, *streams))
        for part, rows in zip((image, text), streams):
            run("NLPConcatHeadsDeviceOperation", [part], [_place(rows, width)])

    def add_gated(rows):
        for _ in "product", "sum":
            pointwise((rows, width))

    for _ in range(DOUBLE_BLOCKS):
        for rows in streams:
            modulation(6)
            norm(rows)
            query_key_value(rows)
        attention()
        for rows in streams:
            gather(rows)
            product(rows, DIM, width)
            add_gated(rows)
            norm(rows)
            product(rows, DIM, HIDDEN // tp)
            product(rows, HIDDEN // tp, DIM)
            scatter(rows)
            add_gated(rows)
    for _ in range(SINGLE_BLOCKS):
        modulation(3)
        for rows in streams:
            norm(rows)
            product(rows, DIM, HIDDEN // tp)
            pointwise((rows, HIDDEN // tp), inputs=1)  # GELU
            query_key_value(rows)
        attention()
        for rows in streams:
            parts = [_place(rows, width), _place(rows, HIDDEN // tp)]
            run("ConcatDeviceOperation", parts, [_place(rows, width + HIDDEN // tp)])
            product(rows, width + HIDDEN // tp, DIM)
            scatter(rows)
            add_gated(rows)
    return done


def joint_attention(heads: int, image: int, text: int) -> Operation:
    """Over so many rows of image and text on one chip, in heads of 128."""
    places = _place(1, heads, image, HEAD), _place(1, heads, text, HEAD)
    return Operation(JOINT_ATTENTION, "", (places[0],) * 3 + (places[1],) * 3, places, "HiFi2")


def _place(*shape: int) -> Place:
    return Place(shape, "BFLOAT16", tiled=True, dram=True)
