"""The emulator's values agree with TT-NN's golden functions, wherever TT-NN has one."""

import pytest

from tt_flux_kontext.planner.mock_device import run

EXACT = 0.0
TIES = 1e-4  # the chip rounds ties to bfloat16 away from zero, torch to even
SUMS = 1e-6  # in float32, in another order
ROUNDING = 2e-3  # one rounding to bfloat16
ATTENTION = 4e-3  # the result is rounded before it is divided, and after
GROUP_NORM = 8e-3  # of a bfloat16 map: statistics are bfloat16 too
JOINT_ATTENTION = 7e-3  # scores, probabilities and sums are rounded to bfloat16 on the way

# Largest relative RMSE.
BOUNDS = {
    "add": ROUNDING,
    "subtract": ROUNDING,
    "multiply": ROUNDING,
    "mul": ROUNDING,
    "addcmul": ROUNDING,
    "silu": ROUNDING,
    "sigmoid": ROUNDING,
    "tanh": ROUNDING,
    "gelu": ROUNDING,
    "relu": EXACT,
    "linear": ROUNDING,
    "matmul": ROUNDING,
    "layer_norm": ROUNDING,
    "rms_norm": ROUNDING,
    "group_norm": GROUP_NORM,
    "softmax": ROUNDING,
    "mean": SUMS,
    "var": SUMS,
    "transformer.scaled_dot_product_attention": ATTENTION,
    "transformer.joint_scaled_dot_product_attention": JOINT_ATTENTION,
    "conv2d": ROUNDING,
    "upsample": EXACT,
    "reshape": EXACT,
    "permute": EXACT,
    "embedding": EXACT,
    "concat": EXACT,
    "slice": EXACT,
    "pad": EXACT,
    "fill_implicit_tile_padding": EXACT,
    "from_torch": EXACT,
    "typecast": TIES,
    "to_torch": EXACT,
    "to_layout": EXACT,
    "from_device": EXACT,
    "to_device": EXACT,
    "zeros": EXACT,
}

# Here there is one chip. Unit tests hold these against torch on several.
ON_MESHES = {
    "all_gather",
    "all_reduce",
    "copy_host_to_device_tensor",
    "mesh_partition",
    "reduce_scatter",
    "transformer.ring_joint_scaled_dot_product_attention",
}


@pytest.fixture(scope="module")
def answers() -> list[dict]:
    return list(run("n150", "tests.mock.golden", None))


def test_all_golden_functions_are_compared_with(answers):
    names, *comparisons = answers
    # That of load_tensor reads TT-NN's own file format, which the emulator neither reads nor writes.
    known = set(names["with golden"]) - {"load_tensor"} - ON_MESHES
    assert known == BOUNDS.keys() == {comparison["op"] for comparison in comparisons}


@pytest.mark.parametrize("op", BOUNDS)
def test_agrees(answers, op):
    errors = [answer["error"] for answer in answers[1:] if answer["op"] == op]
    assert errors and [error for error in errors if not error <= BOUNDS[op]] == []
