"""The groups of weights whose sensitivity is measured, and what rounding one of them does."""

import torch
from safetensors.torch import load_file

from reference.accuracy import relative_rmse
from reference.sensitivity import groups, rounded
from tt_flux_kontext.planner.kontext_dev import ShapeCheckpoint
from tt_flux_kontext.residency import COMPONENTS


def test_every_tensor_of_the_real_model_is_in_one_group():
    checkpoint, patterns = ShapeCheckpoint(), groups(last_single_block=37)
    for component in COMPONENTS:
        for key in checkpoint.tensors(component).entries:
            found = [name for name, pattern in patterns.items() if pattern.fullmatch(f"{component}/{key}")]
            assert len(found) == 1, f"{component}/{key} is in {found}"


def test_rounded_changes_its_group_alone(tiny_checkpoint, tmp_path):
    pattern = groups(last_single_block=2)["last single block"]
    copy = rounded(tiny_checkpoint, pattern, tmp_path / "copy")
    changed = []
    for file in tiny_checkpoint.glob("*/*.safetensors"):
        now = load_file(copy / file.parent.name / file.name)
        for key, value in load_file(file).items():
            if not torch.equal(value, now[key]):
                changed.append(key)
                assert 0.001 < relative_rmse(now[key], value) < 0.02
    assert len(changed) == 5 and all(key.startswith("single_transformer_blocks.2.") for key in changed)
