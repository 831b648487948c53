"""LoRA files as trainers write them, of a change that is known."""

import torch

TINY = {"width": 192, "double": 2, "single": 4, "joint": 96, "pooled": 64}
FULL = {"width": 3072, "double": 19, "single": 38, "joint": 4096, "pooled": 768}


def their_modules(width: int, double: int, single: int, joint: int, pooled: int) -> dict[str, tuple[int, int]]:
    """(out, in) of each linear layer by Black Forest Labs' names."""
    modules = {
        "img_in": (width, 64),
        "txt_in": (width, joint),
        "final_layer.linear": (64, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
    }
    for name, size in (("time_in", 256), ("guidance_in", 256), ("vector_in", pooled)):
        modules |= {f"{name}.in_layer": (width, size), f"{name}.out_layer": (width, width)}
    for i in range(double):
        for stream in ("img", "txt"):
            modules |= {
                f"double_blocks.{i}.{stream}_mod.lin": (6 * width, width),
                f"double_blocks.{i}.{stream}_attn.qkv": (3 * width, width),
                f"double_blocks.{i}.{stream}_attn.proj": (width, width),
                f"double_blocks.{i}.{stream}_mlp.0": (4 * width, width),
                f"double_blocks.{i}.{stream}_mlp.2": (width, 4 * width),
            }
    for i in range(single):
        modules |= {
            f"single_blocks.{i}.linear1": (7 * width, width),
            f"single_blocks.{i}.linear2": (width, 5 * width),
            f"single_blocks.{i}.modulation.lin": (3 * width, width),
        }
    return modules


def pairs(modules: dict[str, tuple[int, int]], rank: int = 4, seed: int = 0) -> dict[str, tuple]:
    """(down, up) of each, random."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for module, (rows, columns) in modules.items():
        found[module] = tuple(torch.randn(*size, generator=generator) / 8 for size in ((rank, columns), (rows, rank)))
    return found


def kohya(changes: dict[str, tuple], alpha: float | None = None, prefix: str = "lora_unet_") -> dict[str, torch.Tensor]:
    """kohya's scripts, with the alpha of each module."""
    state = {}
    for module, (down, up) in changes.items():
        name = prefix + module.replace(".", "_")
        state |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        if alpha is not None:
            state[f"{name}.alpha"] = torch.tensor(float(alpha))
    return state


def peft(changes: dict[str, tuple], prefix: str = "", infix: str = "") -> dict[str, torch.Tensor]:
    """PEFT, and what is named like it."""
    state = {}
    for module, (down, up) in changes.items():
        name = prefix + module
        state |= {f"{name}.lora_A{infix}.weight": down, f"{name}.lora_B{infix}.weight": up}
    return state


def xlabs(changes: dict[str, tuple]) -> dict[str, torch.Tensor]:
    """XLabs' processors of the blocks' attention, of modules of those names."""
    state = {}
    for module, (down, up) in changes.items():
        state |= {f"{module}.down.weight": down, f"{module}.up.weight": up}
    return state
