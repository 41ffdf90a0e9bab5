"""Fine-tuning a specialized model with optax: what the mask removed does not come back.

  python -m examples.finetune

On a tiny random model, which learns to count: steps of a real one take a CPU many seconds. The
specialized model is a pytree of the parameters that are left, and they alone are updated; the
baseline's own arrays stay as they are.
"""

import functools

import jax
import jax.numpy as jnp
import optax

import sinkjax
from examples.models import MASK, tiny_llama

STEPS, ROWS, LENGTH = 60, 16, 24

optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 5e-3, 10, STEPS)),
)


def loss(model: sinkjax.Llama, tokens: jax.Array) -> jax.Array:
    """Mean NLL of the next tokens of int [B, T]."""
    logits = model(tokens)[:, :-1]
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


@functools.partial(jax.jit, donate_argnums=(1,))
def step(
    model: sinkjax.Llama, state: optax.OptState, tokens: jax.Array
) -> tuple[sinkjax.Llama, optax.OptState, jax.Array]:
    """The model and the optimizer's state after one update, and the loss before it."""
    value, gradients = jax.value_and_grad(loss)(model, tokens)
    updates, state = optimizer.update(gradients, state, model)
    return optax.apply_updates(model, updates), state, value


def batch(key: jax.Array, vocab_size: int) -> jax.Array:
    """Rows that count upwards, each from a token of its own: int32 [ROWS, LENGTH]."""
    starts = jax.random.randint(key, (ROWS, 1), 0, vocab_size)
    return (starts + jnp.arange(LENGTH)[None]) % vocab_size


def main() -> tuple[sinkjax.Llama, sinkjax.SpecializedLlama, list[float]]:
    """The baseline, the tuned model, and the loss before each step."""
    baseline = tiny_llama()
    tuned = sinkjax.specialize(baseline, MASK)
    state = optimizer.init(tuned)
    losses = []
    for key in jax.random.split(jax.random.key(3), STEPS):
        tuned, state, value = step(tuned, state, batch(key, tuned.config.vocab_size))
        losses.append(float(value))
    print(f"loss {losses[0]:.3f} before, {losses[-1]:.3f} after {STEPS} steps")
    sizes = (sum(leaf.size for leaf in jax.tree.leaves(m)) for m in (baseline, tuned))
    print("parameters: {:,} of the baseline, {:,} of the tuned model".format(*sizes))
    return baseline, tuned, losses


if __name__ == "__main__":
    main()
