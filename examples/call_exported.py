"""Runs what examples/export.py wrote, as a machine would that has never heard of sinkjax.

python examples/call_exported.py FOLDER
"""

import pathlib
import sys

import numpy as np
from jax import export


def main(folder: pathlib.Path) -> None:
    """Reads model.jax, weights.npz and prompts.npy, and writes answer.npz."""
    exported = export.deserialize(bytearray((folder / "model.jax").read_bytes()))
    with np.load(folder / "weights.npz") as file:
        weights = list(file.values())
    tokens, logits = exported.call(weights, np.load(folder / "prompts.npy"))
    np.savez(folder / "answer.npz", tokens=tokens, logits=logits)
    assert "sinkjax" not in sys.modules
    print(f"exported for {', '.join(exported.platforms)}; called with jax and numpy alone")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not pathlib.Path(sys.argv[1], "model.jax").is_file():
        sys.exit(
            "give a folder with model.jax, weights.npz and prompts.npy; python -m examples.export "
            "writes such a folder and calls this with it"
        )
    main(pathlib.Path(sys.argv[1]))
