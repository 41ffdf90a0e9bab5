"""Prefill and decode of a program, as calls to be timed."""

from typing import Any

import jax
import numpy as np

from sinkjax.distributed import to_host
from sinkjax.models.finite import not_finite
from sinkjax.models.sampling import NO_TOKEN, make_sampler
from sinkjax.programs.compile import Program
from sinkjax.programs.generate import MAX_STOP_TOKENS
from sinkjax.studies.timing.pairs import Call


def prefill_call(program: Program, tokens: np.ndarray) -> Call:
    """Makes the call from a prompt on the host to its first new token there, with its cache kept.

    So its time is the time to the first token. A run whose logits are not finite is an InputError.

    Args:
      program: with a bucket for T.
      tokens: int32 [B, T].
    """
    return Call(lambda: _prefilled(program, tokens), check=lambda given: _check(given[0]))


def decode_call(program: Program, tokens: np.ndarray, steps: int) -> Call:
    """Greedy decoding after a prompt, the same steps each time.

    Before each run the cache is set back to the prompt's length: what lies beyond is written over.
    The program's own calls follow each other without a wait, as they do when it generates. A run
    whose logits are not finite is an InputError.

    Args:
      program: with a bucket for T, and room for the steps.
      tokens: int32 [B, T].
    """
    batch_size, length = tokens.shape
    token, cache = _prefilled(program, tokens)
    _check(token)
    sampler, no_stops = _greedy(batch_size), np.full(MAX_STOP_TOKENS, -1, np.int32)

    def rewind() -> None:
        nonlocal cache
        lengths = jax.device_put(np.full(batch_size, length, np.int32), cache.lengths.sharding)
        cache = cache.replace(lengths=jax.block_until_ready(lengths))

    def run() -> Any:
        nonlocal cache
        newest, remaining, drawn = token, np.full(batch_size, steps, np.int32), []
        for _ in range(-(-steps // program.steps_per_call)):
            done = program.decode.compiled(
                program.parameters, newest, cache, remaining, sampler, no_stops
            )
            newest, cache, remaining = done.token, done.cache, done.remaining
            drawn.append(done.tokens)
        jax.block_until_ready(done)
        return drawn

    return Call(run, rewind, lambda drawn: _check(*drawn))


def cache_bytes(program: Program) -> int:
    """Returns the bytes of the arrays that a program keeps of a text."""
    prefill = next(iter(program.prefill.values())).compiled
    return sum(array.size * array.dtype.itemsize for array in jax.tree.leaves(prefill.out_info[1]))


def _prefilled(program: Program, tokens: np.ndarray) -> tuple[np.ndarray, Any]:
    batch_size, length = tokens.shape
    lengths = np.full(batch_size, length, np.int32)
    token, cache = program.prefill[length].compiled(
        program.parameters, tokens, lengths, lengths, _greedy(batch_size)
    )
    return to_host(token), jax.block_until_ready(cache)


def _check(*drawn: Any) -> None:
    if any((to_host(tokens) == NO_TOKEN).any() for tokens in drawn):
        raise not_finite("logits")


def _greedy(batch_size: int) -> Any:
    return make_sampler([0] * batch_size, temperature=0.0)
