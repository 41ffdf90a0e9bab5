"""A specialized model on a mesh of the caller's own: heads over one axis, or rows over another.

  python -m examples.mesh

On a tiny random model, over all devices there are (run alone on a CPU, over two that JAX makes of
it). With `NamedSharding` the parameters are laid out and the compiler adds the communication; under
`jax.shard_map` each device runs the whole model on its own rows.
"""

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

import sinkjax
from examples.models import MASK, tiny_llama
from sinkjax.models.sharding import shard


def main() -> dict[str, np.ndarray]:
    """Logits float32 [B, T, V] on one device, with heads divided, and with rows divided."""
    fast = sinkjax.specialize(tiny_llama(), MASK)
    tokens = jax.random.randint(jax.random.key(4), (4, 24), 0, fast.config.vocab_size)
    call = lambda model, tokens: model(tokens)  # noqa: E731
    auto = (jax.sharding.AxisType.Auto,)
    count = min(2, jax.device_count())
    heads = jax.make_mesh((count,), ("model",), axis_types=auto)
    rows = jax.make_mesh((count,), ("data",), axis_types=auto)
    by_rows = jax.shard_map(
        call, mesh=rows, in_specs=(P(), P("data")), out_specs=P("data"), check_vma=False
    )
    laid = shard(fast, heads)  # by the logical axes that each parameter names
    queries = laid.layers[0].attention.q[...]
    print(f"{count} devices; the queries of layer 0 lie as {queries.sharding.spec}")
    by_layout = {
        "one device": np.asarray(jax.jit(call)(fast, tokens)),
        "heads": np.asarray(jax.jit(call)(laid, tokens)),
        "rows": np.asarray(jax.jit(by_rows)(fast, tokens)),
    }
    for name, logits in by_layout.items():
        print(f"{name}: differs by {np.abs(logits - by_layout['one device']).max():.1e}")
    return by_layout


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 2)
    main()
