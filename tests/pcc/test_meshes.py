"""Edits on many emulated chips against diffusers' pipeline: every system and split, rings and gathered attention."""

import pytest

from tests.pcc.test_pipeline import PROMPT, compare, picture
from tt_flux_kontext.backend import choose

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
on_mesh = pytest.mark.parametrize(
    "device_params,split",
    [({"name": f"emulated:{system}", "mesh_shape": mesh}, split) for system, mesh, split in SPLITS],
    ids=[f"{system} {rows}x{columns}, {sp} by {tp}" for system, (rows, columns), (sp, tp) in SPLITS],
    indirect=["device_params"],
)


@on_mesh
def test_edit_with_padding_between(mesh_device, tiny_checkpoint, check_accuracy, request, split):
    """Tokens of text and image that fill no chip's rows: keys are gathered, and padding is masked."""
    label = f"edit, padded, {request.node.callspec.id}"
    compare(tiny_checkpoint, mesh_device, check_accuracy, label, split=split, image=picture(112, 80), prompt=PROMPT)


@on_mesh
def test_edit_around_the_ring(mesh_device, tiny_checkpoint, check_accuracy, request, split):
    """Text that fills all chips, and an image whose padding is all on the last one."""
    sp, _ = split
    edge = 48 + 16 * sp  # 2 x 25, 2 x 49 and 2 x 121 tokens, for 2, 4 and 8 chips
    label = f"edit, ring, {request.node.callspec.id}"
    arguments = {"image": picture(edge, edge), "prompt": PROMPT, "max_sequence_length": 32 * sp}
    size = {"height": edge, "width": edge, "area": edge**2}
    compare(tiny_checkpoint, mesh_device, check_accuracy, label, split=split, **size, **arguments)
