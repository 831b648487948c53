"""The emulator refuses wrong calls, and says what is wrong. On a card TT-NN does, in its own words."""

import pytest
import torch

import tt_flux_kontext.emulator as emulator
from tests import mesh_refusals
from tests.refusals import CASES, SIGNATURES, SILENT, New
from tt_flux_kontext.backend import choose
from tt_flux_kontext.device import open_device


@pytest.fixture
def new(mesh_device, request):
    if choose() == "silicon" and request.node.callspec.params["case"] in SILENT:
        pytest.skip("TT-NN takes it or dies of it")
    return New(mesh_device)


@pytest.mark.parametrize("case", CASES)
def test_refused(new, case):
    call, words = CASES[case]
    with pytest.raises(RuntimeError, match=f"TT_FATAL: .*{words}" if choose() == "emulated" else None):
        call(new)


@pytest.mark.parametrize("case", SIGNATURES)
def test_no_such_signature(new, case):
    with pytest.raises(TypeError):
        SIGNATURES[case](new)


@pytest.fixture
def new_on_two_chips():
    if choose() == "silicon":
        pytest.skip("for the emulated n300")
    with open_device("emulated:n300") as mesh:
        yield New(mesh)


@pytest.mark.parametrize("case", mesh_refusals.CASES)
def test_refused_on_meshes(new_on_two_chips, case):
    call, words = mesh_refusals.CASES[case]
    with pytest.raises(RuntimeError, match=f"TT_FATAL: .*{words}"):
        call(new_on_two_chips)


@pytest.mark.parametrize("case", mesh_refusals.SIGNATURES)
def test_no_such_signature_on_meshes(new_on_two_chips, case):
    with pytest.raises(TypeError):
        mesh_refusals.SIGNATURES[case](new_on_two_chips)


@pytest.fixture
def without_l1_small():
    device = emulator.open_mesh_device(l1_small_size=0)
    yield device
    emulator.close_mesh_device(device)


def test_embedding_ids_beyond_the_weight(without_l1_small):
    device = without_l1_small
    ids = emulator.from_torch(torch.tensor([[40]]), dtype=emulator.uint32, device=device)
    with pytest.raises(RuntimeError, match="beyond the 40 rows"):
        emulator.embedding(ids, emulator.empty((40, 64), layout=emulator.TILE_LAYOUT, device=device))


def test_convolution_needs_l1_small(without_l1_small):
    device = without_l1_small
    x = emulator.empty((1, 1, 256, 64), layout=emulator.TILE_LAYOUT, device=device)
    weight = emulator.from_torch(torch.ones(64, 64, 3, 3), dtype=emulator.bfloat16)
    with pytest.raises(RuntimeError, match="l1_small_size"):
        emulator.conv2d(
            input_tensor=x,
            weight_tensor=weight,
            device=device,
            in_channels=64,
            out_channels=64,
            batch_size=1,
            input_height=16,
            input_width=16,
            kernel_size=(3, 3),
            padding=(1, 1),
        )
