"""Perplexity of a text, with and without a mask: `jax.jit` around `jax.lax.scan` over batches.

  python -m examples.perplexity

On smollm2-135m, since the perplexity of random weights says nothing. The loop over batches is the
caller's own and lies in the compiled program: the model is a pytree, an argument like any other.
"""

import jax
import jax.numpy as jnp
import optax

import sinkjax
from sinkjax.studies.texts import CHOOSE, read_text

BATCHES, ROWS, LENGTH = 3, 4, 64

# Four first tokens and the last 16 in every layer but the first ones.
MASK = sinkjax.SinkMask.from_text("L0-5: 9f | L6-29: 9w(4,16)")


@jax.jit
def perplexity(model: sinkjax.Llama, batches: jax.Array) -> jax.Array:
    """exp of the mean NLL of int [batches, B, T]."""

    def add(total: jax.Array, tokens: jax.Array) -> tuple[jax.Array, None]:
        logits = model(tokens)[:, :-1]
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        return total + nll.mean(), None

    total, _ = jax.lax.scan(add, jnp.float32(0), batches)
    return jnp.exp(total / len(batches))


def main() -> dict[str, float]:
    """The perplexity of each model."""
    model = sinkjax.load("smollm2-135m")
    tokenizer = sinkjax.load_tokenizer("smollm2-135m")
    text = read_text(CHOOSE, 1, seed=0).text
    tokens = tokenizer(text[:10_000])["input_ids"][: BATCHES * ROWS * LENGTH]
    batches = jnp.asarray(tokens, jnp.int32).reshape(BATCHES, ROWS, LENGTH)
    models = {"baseline": model, "windows": sinkjax.specialize(model, MASK)}
    perplexities = {name: float(perplexity(model, batches)) for name, model in models.items()}
    for name, value in perplexities.items():
        print(f"{name}: perplexity {value:.2f} over {batches.size} tokens")
    return perplexities


if __name__ == "__main__":
    main()
