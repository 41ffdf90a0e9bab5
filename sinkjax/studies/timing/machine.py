"""What the machine can do, measured in the same rounds as what runs on it.

Reading is measured over more bytes than caches hold, by all threads at once; multiplying on square
matrices in the parameters' dtype. On a CPU it is numpy that reads, whose arrays lie on large pages
where the system has them: 55 GB/s where XLA's own reductions reached 50 and a loop in C 35 to 58.
"""

import concurrent.futures
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.environment import num_threads
from sinkjax.studies.timing.pairs import Call

# In a round; the best counts, since an interruption hits a short call whole or not at all.
_TIMES = 3


def machine_calls(
    dtype: Any = jnp.float32, *, by_jax: bool = False
) -> tuple[dict[str, Call], dict[str, float]]:
    """What measures JAX's first device; where that is a CPU, what this process may use of it.

    Args:
      by_jax: whether it is JAX that reads on a CPU, too.

    Returns:
      calls to be timed beside others, `read` and `multiply`, each several times, as `read 0`,
      `read 1`, ...; and what they do each time: bytes of `read`, FLOPs of
      `multiply`.
    """
    on_cpu = jax.devices()[0].platform == "cpu"
    read_bytes, size = (512 << 20, 2048) if on_cpu else (2 << 30, 8192)
    read = _reading_cpu if on_cpu and not by_jax else _reading_device
    own = {"read": Call(read(read_bytes)), "multiply": Call(_multiplying(size, dtype))}
    calls = {f"{name} {i}": call for name, call in own.items() for i in range(_TIMES)}
    return calls, {"read": float(read_bytes), "multiply": 2.0 * size**3}


def _reading_cpu(num_bytes: int) -> Callable[[], Any]:
    threads = num_threads()
    parts = np.array_split(np.ones(num_bytes // 4, np.float32), threads)
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    return lambda: list(pool.map(np.max, parts))


def _reading_device(num_bytes: int) -> Callable[[], Any]:
    x = jnp.ones((num_bytes // 4096, 1024), jnp.float32)
    largest = jax.jit(jnp.max)
    return lambda: largest(x).block_until_ready()


def _multiplying(size: int, dtype: Any) -> Callable[[], Any]:
    x = jnp.ones((size, size), dtype)
    product = jax.jit(lambda x: x @ x)
    return lambda: product(x).block_until_ready()
