"""Gradients of each example through every path: `jax.vmap` of `jax.value_and_grad`.

  python -m examples.gradients

On a tiny random model: what is differentiated does not depend on size. A gradient has the structure
of its model, so what a mask removed has none, and `nnx.to_flat_state` names what is left.
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import sinkjax
from examples.models import MASK, tiny_llama


def loss(model: sinkjax.Llama, tokens: jax.Array) -> jax.Array:
    """Mean NLL of the next tokens of one row, int [T]."""
    logits = model(tokens[None])[0, :-1]
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[1:]).mean()


def main() -> tuple[sinkjax.Llama, jax.Array, sinkjax.Llama]:
    """The model, rows int32 [B, T], and the gradients, a model whose arrays have B in front."""
    fast = sinkjax.specialize(tiny_llama(), MASK)
    tokens = jax.random.randint(jax.random.key(1), (4, 24), 0, fast.config.vocab_size)
    of_rows = jax.jit(jax.vmap(jax.value_and_grad(loss), in_axes=(None, 0)))
    losses, gradients = of_rows(fast, tokens)
    print("losses:", losses)
    for path, leaf in nnx.to_flat_state(nnx.state(gradients)):
        norms = jnp.linalg.norm(leaf[...].reshape(len(tokens), -1), axis=1)
        print(f"{'.'.join(map(str, path))}: gradients of {leaf.shape[1:]}, norms {norms}")
    return fast, tokens, gradients


if __name__ == "__main__":
    main()
