"""One serialized file that CPUs, TPUs and CUDA devices run, without sinkjax: `jax.export`.

  pip install flatbuffers
  python -m examples.export

On a tiny random model: the file holds the program and not the weights, which are arguments. What is
exported is a whole greedy continuation, prefill and decode steps in one function of a prompt. Then
examples/call_exported.py, which imports jax and numpy alone, runs it in a process of its own.
"""

import pathlib
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

import sinkjax
from examples.models import MASK, tiny_llama

PLATFORMS = ("cpu", "tpu", "cuda")
ROWS, LENGTH, NEW = 2, 12, 8


def continued(model: sinkjax.Llama, prompts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """int32 [B, T] to the NEW likeliest tokens, int32 [B, NEW], and their logits [B, NEW, V]."""
    logits, cache = model.prefill(prompts, max_length=LENGTH + NEW)

    def step(carry, _):
        logits, cache = carry
        token = logits.argmax(axis=-1).astype(jnp.int32)
        return model.decode(token, cache), (token, logits)

    _, (tokens, logits) = jax.lax.scan(step, (logits, cache), length=NEW)
    return tokens.T, logits.swapaxes(0, 1)


def main() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What the model gives here, and what the file gives there: `tokens` and `logits` of each."""
    fast = sinkjax.specialize(tiny_llama(), MASK)
    prompts = jax.random.randint(jax.random.key(2), (ROWS, LENGTH), 0, fast.config.vocab_size)
    # Arrays in a list are all that the other side has to know of a model.
    weights, structure = jax.tree.flatten(fast)
    rebuilt = lambda weights, prompts: continued(jax.tree.unflatten(structure, weights), prompts)  # noqa: E731
    exported = export.export(jax.jit(rebuilt), platforms=PLATFORMS)(weights, prompts)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "model.jax").write_bytes(exported.serialize())
        np.savez(folder / "weights.npz", *map(np.asarray, weights))
        np.save(folder / "prompts.npy", prompts)
        script = pathlib.Path(__file__).with_name("call_exported.py")
        subprocess.run([sys.executable, script, folder], check=True)
        there = dict(np.load(folder / "answer.npz"))
    tokens, logits = jax.jit(continued)(fast, prompts)
    here = {"tokens": np.asarray(tokens), "logits": np.asarray(logits)}
    print("largest difference of logits:", np.abs(here["logits"] - there["logits"]).max())
    return here, there


if __name__ == "__main__":
    main()
