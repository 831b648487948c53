"""FLUX.1 Kontext [dev] on Tenstorrent TT-NN."""

import importlib

_PLACES = {
    "FluxKontextPipeline": "tt_flux_kontext.pipeline",
    "open_device": "tt_flux_kontext.device",
    "side_by_side": "tt_flux_kontext.turns",
    "submeshes": "tt_flux_kontext.device",
}
__all__ = list(_PLACES)


def __getattr__(name: str):
    """Each at its first use: torch, diffusers and transformers take seconds to import, and not all need them."""
    if name not in _PLACES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(_PLACES[name]), name)
