"""Generating text with compiled executables: the host's side of the loop.

The device runs many steps a call and stops by itself when every row is done. The host hands the
next call over before it reads what the last one drew, so that the device never waits for it; all
that a call's results decide is whether there is another one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.errors import InputError, Problem
from sinkjax.models.sampling import Sampler, draw, make_sampler
from sinkjax.programs.executable import Executable

MAX_STOP_TOKENS = 8
"""Stop tokens that an executable can be given: their number is part of its shapes."""

_NO_TOKEN = -1  # fills the stop tokens up; no token has this id

Prompts = Sequence[int] | Sequence[Sequence[int]] | np.ndarray | jax.Array
OnTokens = Callable[[int, list[int]], None]


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be generated, read and checked.

    Attributes:
      prompts: int32 arrays.
      single: whether one prompt was given, not a sequence of them.
      max_new_tokens: for each.
      sampling: of `sinkjax.models.sampling.make_sampler`.
      stop_tokens: int32 [MAX_STOP_TOKENS].
      seeds: one for each prompt.
    """

    prompts: list[np.ndarray]
    single: bool
    max_new_tokens: int
    sampling: Mapping[str, Any]
    stop_tokens: np.ndarray
    seeds: list[int]

    @classmethod
    def read(
        cls,
        prompts: Prompts,
        *,
        vocab_size: int,
        buckets: Sequence[int],
        max_length: int,
        max_new_tokens: int,
        sampling: Mapping[str, Any],
        stop_tokens: Iterable[int],
        seed: int | Sequence[int],
    ) -> Request:
        """Reads what a user asks for, or raises InputError with all that is wrong with it."""
        single = _is_single(prompts)
        rows = [np.asarray(tokens) for tokens in ([prompts] if single else prompts)]
        problems = []
        for index, tokens in enumerate(rows):
            which = "the prompt" if single else f"prompt {index}"
            problems += [f"{which} {problem}" for problem in _token_problems(tokens, vocab_size)]
            if tokens.size > max(buckets):
                problems.append(
                    f"{which} has {tokens.size} tokens, more than the longest bucket; the buckets "
                    f"are {', '.join(map(str, buckets))}. Shorten it, or compile a longer one "
                    "(prefill_lengths)"
                )
            elif tokens.size + max_new_tokens > max_length:
                problems.append(
                    f"{which} has {tokens.size} tokens, which with max_new_tokens "
                    f"{max_new_tokens} is more than max_length, {max_length}. Ask for at most "
                    f"{max_length - tokens.size}, or compile for more"
                )
        if max_new_tokens < 1:
            problems.append(Problem("max_new_tokens", max_new_tokens, "at least 1 is allowed"))
        stops = sorted(set(stop_tokens))
        if len(stops) > MAX_STOP_TOKENS:
            problems.append(Problem("stop_tokens", stops, f"at most {MAX_STOP_TOKENS} are allowed"))
        seeds = [seed + i for i in range(len(rows))] if isinstance(seed, int) else list(seed)
        if len(seeds) != len(rows):
            problems.append(Problem("seed", seeds, f"give one for each of the {len(rows)} prompts"))
        try:
            make_sampler(seeds, **sampling)
        except InputError as error:
            problems += error.problems
        if problems:
            raise InputError(*problems)
        padding = [_NO_TOKEN] * (MAX_STOP_TOKENS - len(stops))
        return cls(
            prompts=[tokens.astype(np.int32) for tokens in rows],
            single=single,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            stop_tokens=np.asarray(stops + padding, np.int32),
            seeds=seeds,
        )

    def rows(self) -> list[Row]:
        """The prompts at their start."""
        pairs = zip(self.prompts, self.seeds, strict=True)
        return [
            Row(index, prompt, self.max_new_tokens, seed)
            for index, (prompt, seed) in enumerate(pairs)
        ]

    def result(self, rows: list[Row]) -> np.ndarray | list[np.ndarray]:
        """The new tokens in the form in which the prompts were given."""
        arrays = [np.asarray(row.new, np.int32) for row in rows]
        return arrays[0] if self.single else arrays


@dataclasses.dataclass
class Row:
    """One prompt on its way.

    Attributes:
      index: of the prompt.
      prompt: int32 [T].
      budget: new tokens that it may still get; 0 once it has drawn a stop token.
      seed: of its draws.
      new: those it has got.
    """

    index: int
    prompt: np.ndarray
    budget: int
    seed: int
    new: list[int] = dataclasses.field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens so far."""
        return len(self.prompt) + len(self.new)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Steps:
    """What one call of the decode executable leaves behind. A pytree.

    Attributes:
      cache: the model's, donated from call to call.
      token: int32 [B], the last one drawn.
      remaining: int32 [B], tokens that each row may still draw; 0 where it is done.
      tokens: int32 [B, steps], those drawn in this call.
      drawn: int32 [B], how many of them each row drew, from the left.
    """

    cache: Any
    token: jax.Array
    remaining: jax.Array
    tokens: jax.Array
    drawn: jax.Array


def decode_steps(
    decode: Callable[[jax.Array, Any], tuple[jax.Array, Any]],
    steps: int,
    token: jax.Array,
    cache: Any,
    remaining: jax.Array,
    sampler: Sampler,
    stop_tokens: jax.Array,
) -> Steps:
    """Decodes until every row is done, at most `steps` times.

    Rows that are done go on with the others; what they compute is dropped.

    Args:
      decode: int32 [B] and cache to float32 [B, V] and cache.
      steps: static.
      token: int32 [B], drawn but not yet in the cache.
      cache: of the model.
      remaining: int32 [B].
      sampler: for B rows.
      stop_tokens: int32 [MAX_STOP_TOKENS].
    """

    def goes_on(carry: tuple[jax.Array, Steps]) -> jax.Array:
        step, state = carry
        return (step < steps) & (state.remaining > 0).any()

    def body(carry: tuple[jax.Array, Steps]) -> tuple[jax.Array, Steps]:
        step, state = carry
        logits, cache = decode(state.token, state.cache)
        token = draw(logits, sampler, cache.lengths)
        active = state.remaining > 0
        stopped = (token[:, None] == stop_tokens[None, :]).any(axis=1)
        remaining = jnp.where(active & ~stopped, state.remaining - 1, 0)
        tokens = jax.lax.dynamic_update_slice_in_dim(state.tokens, token[:, None], step, axis=1)
        drawn = state.drawn + active.astype(jnp.int32)
        return step + 1, Steps(cache, token, remaining, tokens, drawn)

    start = Steps(
        cache=cache,
        token=token,
        remaining=remaining,
        tokens=jnp.zeros((token.shape[0], steps), jnp.int32),
        drawn=jnp.zeros_like(remaining),
    )
    return jax.lax.while_loop(goes_on, body, (jnp.int32(0), start))[1]


class Runnable(Protocol):
    """What `run` needs of a `Program`, which is built on this module."""

    @property
    def batch_size(self) -> int: ...
    @property
    def steps_per_call(self) -> int: ...
    @property
    def prefill(self) -> Mapping[int, Executable]: ...
    @property
    def decode(self) -> Executable: ...
    @property
    def parameters(self) -> Any: ...


def run(
    program: Runnable,
    rows: Iterable[Row],
    request: Request,
    on_tokens: OnTokens | None,
    *,
    up_to: int | None = None,
) -> None:
    """Generates for rows of any number and lengths; each gets its new tokens in `new`.

    Rows of like length go together, so that short prompts do not pay for a long one's bucket.

    Args:
      program: whose executables run.
      rows: each with a budget and a bucket that it fits into.
      request: their sampling and stop tokens.
      on_tokens: called with a row's index and its new tokens as they come.
      up_to: no token is drawn after more tokens than these; None for no such end.
    """
    if program.parameters is None:
        raise ValueError("the program was compiled to be read: without weights, or for a device")
    order = sorted(rows, key=lambda row: row.length)
    for start in range(0, len(order), program.batch_size):
        batch = order[start : start + program.batch_size]
        _Batch(program, batch, request, on_tokens, up_to).run()


class _Batch:
    """At most as many rows as the executables have, from prefill to the last token."""

    def __init__(
        self,
        program: Runnable,
        rows: Sequence[Row],
        request: Request,
        on_tokens: OnTokens | None,
        up_to: int | None,
    ):
        self._program, self._rows, self._request = program, rows, request
        self._on_tokens, self._up_to = on_tokens, up_to
        self._idle = program.batch_size - len(rows)
        seeds = [row.seed for row in rows] + [0] * self._idle
        self._sampler = make_sampler(seeds, **request.sampling)

    def run(self) -> None:
        program = self._program
        token, cache = self._prefill()
        self._deliver(np.asarray(token)[:, None], [1] * len(self._rows))
        remaining = np.asarray([*map(self._remaining, self._rows)] + [0] * self._idle, np.int32)
        unread = None
        for _ in range(-(-int(remaining.max()) // program.steps_per_call)):
            steps = program.decode.compiled(
                program.parameters,
                token,
                cache,
                remaining,
                self._sampler,
                self._request.stop_tokens,
            )
            token, cache, remaining = steps.token, steps.cache, steps.remaining
            if unread is not None and self._read(unread):
                return  # the call just made had nothing to do
            unread = steps
        if unread is not None:
            self._read(unread)

    def _prefill(self) -> tuple[jax.Array, Any]:
        """The first new token, int32 [B], and the cache."""
        program = self._program
        lengths = [row.length for row in self._rows] + [1] * self._idle
        bucket = min(b for b in program.prefill if b >= max(lengths))
        tokens = np.zeros((program.batch_size, bucket), np.int32)
        for index, row in enumerate(self._rows):
            tokens[index, : row.length] = [*row.prompt, *row.new]
        return program.prefill[bucket].compiled(
            program.parameters, tokens, np.asarray(lengths, np.int32), self._sampler
        )

    def _remaining(self, row: Row) -> int:
        """Tokens that a row may still draw here."""
        if self._up_to is None:
            return row.budget
        return min(row.budget, max(0, self._up_to - row.length + 1))

    def _read(self, steps: Steps) -> bool:
        """Waits for a call and delivers what it drew; whether all rows are done."""
        tokens, drawn, remaining = jax.device_get((steps.tokens, steps.drawn, steps.remaining))
        self._deliver(tokens, drawn.tolist())
        return not remaining.any()

    def _deliver(self, tokens: np.ndarray, drawn: Sequence[int]) -> None:
        for row, drawn_tokens, count in zip(self._rows, tokens.tolist(), drawn, strict=False):
            if not count:
                continue
            new = drawn_tokens[:count]
            row.new += new
            row.budget = 0 if new[-1] in self._request.stop_tokens else row.budget - count
            if self._on_tokens is not None:
                self._on_tokens(row.index, new)


def _is_single(prompts: Prompts) -> bool:
    if isinstance(prompts, np.ndarray | jax.Array):
        return prompts.ndim == 1
    return len(prompts) > 0 and isinstance(prompts[0], int | np.integer)


def _token_problems(tokens: np.ndarray, vocab_size: int) -> list[str]:
    if tokens.size == 0:
        return ["is empty; at least one token is needed"]
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        return [f"is {tokens.dtype} {tokens.shape}; whole numbers [T] are needed"]
    outside = tokens[(tokens < 0) | (tokens >= vocab_size)]
    if outside.size:
        return [f"holds token {outside[0]}; the vocabulary has ids 0 to {vocab_size - 1}"]
    return []
