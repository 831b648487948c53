"""Edits on many emulated chips against diffusers' pipeline: every system and split, rings and gathered attention."""

import pytest

from tests.pcc import test_transformer
from tests.pcc.test_pipeline import PROMPT, compare, error_of, picture
from tt_flux_kontext.backend import choose
from tt_flux_kontext.mesh import Mesh

pytestmark = [
    pytest.mark.usefixtures("reset_seeds"),
    pytest.mark.skipif(choose() != "emulated", reason="the chips that there are have one form"),
]

SPLITS = [  # system, mesh, chips that split tokens and features
    ("n300", (1, 2), (2, 1)),
    ("n300", (1, 2), (1, 2)),
    ("t3k", (2, 4), (4, 2)),
    ("t3k", (2, 4), (2, 4)),
    ("t3k", (1, 8), (8, 1)),
    ("t3k", (1, 8), (1, 8)),
    ("p300", (1, 2), (2, 1)),
    ("p150x4", (1, 4), (4, 1)),
    ("p150x4", (2, 2), (2, 2)),
    ("galaxy", (8, 4), (8, 4)),
    ("galaxy", (4, 8), (4, 8)),
]


def on_meshes(*slow: tuple[int, int]):
    """Parameters for each of SPLITS, slow on meshes of these shapes."""
    return pytest.mark.parametrize(
        "device_params,split",
        [
            pytest.param(
                {"name": f"emulated:{system}", "mesh_shape": mesh}, split, marks=[pytest.mark.slow] * (mesh in slow)
            )
            for system, mesh, split in SPLITS
        ],
        ids=[f"{system} {rows}x{columns}, {sp} by {tp}" for system, (rows, columns), (sp, tp) in SPLITS],
        indirect=["device_params"],
    )


@on_meshes((1, 8), (4, 8))
def test_edit_with_padding_between(mesh_device, tiny_checkpoint, check_accuracy, request, split):
    """Tokens of text and image that fill no chip's rows: keys are gathered, and padding is masked."""
    label = f"edit, padded, {request.node.callspec.id}"
    compare(tiny_checkpoint, mesh_device, check_accuracy, label, split=split, image=picture(112, 80), prompt=PROMPT)


@on_meshes((8, 4), (4, 8))
def test_edit_around_the_ring(mesh_device, tiny_checkpoint, check_accuracy, request, split):
    """Text that fills all chips, and an image whose padding is all on the last one."""
    sp, _ = split
    edge = 48 + 16 * sp  # 2 x 25, 2 x 49 and 2 x 121 tokens, for 2, 4 and 8 chips
    label = f"edit, ring, {request.node.callspec.id}"
    arguments = {"image": picture(edge, edge), "prompt": PROMPT, "max_sequence_length": 32 * sp}
    size = {"height": edge, "width": edge, "area": edge**2}
    compare(tiny_checkpoint, mesh_device, check_accuracy, label, split=split, **size, **arguments)


@pytest.mark.parametrize("device_params", [{"name": "emulated:t3k"}], indirect=True)
class TestT3K:
    """Four chips split tokens, two features."""

    def test_true_cfg(self, mesh_device, tiny_checkpoint, check_accuracy):
        arguments = {"negative_prompt": "blue", "true_cfg_scale": 3.0, "image": picture(64, 64), "prompt": PROMPT}
        compare(tiny_checkpoint, mesh_device, check_accuracy, "edit with true CFG, t3k", **arguments)

    @pytest.mark.slow
    def test_batch(self, mesh_device, tiny_checkpoint, check_accuracy):
        arguments = {"image": [picture(64, 80, seed=1), picture(64, 80, seed=2)], "prompt": [PROMPT, "add a star"]}
        compare(
            tiny_checkpoint, mesh_device, check_accuracy, "batch of 2 x 2, t3k", num_images_per_prompt=2, **arguments
        )

    def test_bfp8_around_the_ring(self, mesh_device, tiny_checkpoint):
        """Four chips and one link between them: queries, keys and values are bfloat8_b."""
        assert error_of("bfp8_mixed", tiny_checkpoint, mesh_device, edge=112, text_tokens=128) < 0.02

    @pytest.mark.parametrize("split", [(4, 2), (2, 4)])
    @pytest.mark.parametrize("heads,head_dim", [(6, 32), (3, 64), (5, 128)])
    @pytest.mark.parametrize("rows,columns,context", [(5, 13, 128), (7, 7, 20)])
    def test_any_heads_and_rows(self, mesh_device, check_accuracy, split, heads, head_dim, rows, columns, context):
        """Three heads a chip, heads that don't divide; padding at the end, and between text and image."""
        sp, tp = split
        label = f"transformer, {heads} x {head_dim}, {context} + {2 * rows * columns} tokens, {sp} by {tp}"
        parallel = Mesh(mesh_device).split((sp, tp), heads * head_dim)
        test_transformer.compare(parallel, check_accuracy, label, heads, head_dim, rows, columns, context)


@pytest.mark.parametrize(
    "device_params,split,heads",
    [
        ({"name": "emulated:n300"}, (1, 2), 4),
        ({"name": "emulated:t3k"}, (2, 4), 4),
        ({"name": "emulated:galaxy"}, (8, 4), 4),
        ({"name": "emulated:galaxy", "mesh_shape": (4, 8)}, (4, 8), 8),
        ({"name": "emulated:p150x4"}, (1, 4), 4),
    ],
    indirect=["device_params"],
)
@pytest.mark.parametrize("fused", [True, False])
def test_split_stream(mesh_device, check_accuracy, split, heads, fused):
    """The residual stream split by features, in lines and in rings, or whole on each chip."""
    sp, tp = split
    parallel = Mesh(mesh_device).split((sp, tp), 64 * heads if fused else 0)
    assert parallel.fused is fused
    label = f"transformer, {'split' if fused else 'whole'} stream, {sp} by {tp}"
    test_transformer.compare(parallel, check_accuracy, label, heads, 64, 7, 9, 32 * sp)
