"""The device computes what TT-NN's own kernels do: every stored vector, and the calls that they don't get right."""

import pytest

from reference.accuracy import relative_rmse
from tests.silicon.case import VECTORS, Bench, load, load_picture, stored
from tests.silicon.cases import CASES
from tests.silicon.cases.norms import AXES, EPS
from tests.silicon.cases.whole_models import edited, edited_by_ours, torch_pipeline
from tt_flux_kontext.backend import choose, ttnn
from tt_flux_kontext.models.rope import pair_rotation, rope_tables
from tt_flux_kontext.precision import EXACT

PICTURE, STEPS = "edit_circle_8_steps", 8


def test_every_vector_has_a_case():
    assert {file.stem for file in VECTORS.glob("*.npz")} == {name for name in CASES if stored(name)}


@pytest.mark.parametrize("name", [name for name in CASES if stored(name)])
def test_vector(mesh_device, compare, name):
    case = CASES[name]
    compare(case, *case.run(Bench(mesh_device)), case.kernel())


def test_edit_is_the_kernels_picture(mesh_device):
    """The README's edit, which the kernels made with the VAE's norms in bfloat16.

    A bit that differs early makes all later roundings others: with the models that the kernels ran, pictures by the
    emulator are 0.43 to 0.50 % from each other when the starting noise is changed by a millionth. Results with
    independent errors of the same size are sqrt(2) times as far from each other as from the truth.
    """
    kernels, ours = load_picture(PICTURE), edited_by_ours(Bench(mesh_device), STEPS)
    theirs = edited(torch_pipeline(), STEPS)
    kernel_error, error = relative_rmse(kernels, theirs), relative_rmse(ours, theirs)
    difference = relative_rmse(ours, kernels)
    print(f"\nfrom diffusers: kernels {kernel_error:.4f}, device {error:.4f}; from each other {difference:.4f}")
    assert error <= kernel_error and difference <= 2**0.5 * kernel_error


def head_norm_op(device, x, w, ids):
    """TT-NN's op as it is, without what `models.layers.HeadNorm` does for it."""
    bench, size = Bench(device), len(w)
    heads = x.shape[-1] // size
    cos, sin = (bench.put(table[None, None], "float32") for table in rope_tables(ids, AXES[size]))
    return ttnn.experimental.dit_fused_distributed_rmsnorm(
        bench.put(x),
        None,
        device,
        [],
        epsilon=EPS,
        num_heads_per_device=heads,
        per_head_norm=True,
        weight=bench.put(w.repeat(heads)[None]),
        transformation_mat=bench.put(pair_rotation()[None, None]),
        rope_cos=cos,
        rope_sin=sin,
        compute_kernel_config=EXACT.norm_config(device),
    )


@pytest.fixture
def emulated():
    if choose() != "emulated":
        pytest.skip("a card would wait for ever, or give wrong numbers without a word")


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(
    "name,reason",
    [
        ("head_norm_rope_32", "multiple of 4"),  # 6 heads of a tile: the kernel waits for two more
        ("head_norm_rope_77rows", "rows"),  # the last 13 get the angles of the first
        ("head_norm_rope_24x128_odd", "rows"),
    ],
)
def test_refuses_what_the_kernels_get_wrong(mesh_device, name, reason):
    inputs = load(name)
    with pytest.raises(RuntimeError, match=reason):
        head_norm_op(mesh_device, inputs["in_x"], inputs["in_w"], inputs["in_ids"])


@pytest.mark.parametrize("name", ["head_norm_rope_8x32", "head_norm_rope_20rows"])
def test_takes_what_the_kernels_get_right(mesh_device, name):
    """Whole tiles of rows, and less than one."""
    inputs = load(name)
    out = head_norm_op(mesh_device, inputs["in_x"], inputs["in_w"], inputs["in_ids"])
    assert relative_rmse(ttnn.to_torch(out).float(), inputs["out0"]) <= 2e-3
