"""Trains the demo's LoRA, which teaches the demo's weights a shape that they don't know: one command, seeded.

    python -m reference.train_lora [OUT]

Takes about 12 minutes on one core. `python -m reference.evaluate --lora OUT --new heart` says what it has learnt.
"""

import argparse
from pathlib import Path

from .lora import HEART_LORA, write_lora
from .pipeline import TINY_KONTEXT, load
from .training.lora import examples, train_lora
from .wording import HEART

FAMILIES, STEPS = 300, 700


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a LoRA that knows hearts, for the demo's weights.")
    parser.add_argument("out", nargs="?", type=Path, default=HEART_LORA, help="file (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=Path("out/train"), help="folder of the state")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    pipe = load(TINY_KONTEXT)
    new, known = examples(pipe.vae, HEART, FAMILIES, arguments.seed)
    matrices = train_lora(pipe, new, known, arguments.work / "lora.pt", arguments.steps, arguments.seed)
    print(write_lora(arguments.out, matrices))


if __name__ == "__main__":
    main()
