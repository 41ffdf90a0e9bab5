"""Generating text with compiled executables: the host's side of the loop.

The device runs many steps a call and stops by itself when every row is done. The host hands the
next call over before it reads what the last one drew, so that the device never waits for it; all
that a call's results decide is whether there is another one.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sinkjax.attention.kernels import XLA, Kernel
from sinkjax.distributed import is_traced, to_host
from sinkjax.errors import InputError, Problem, whole
from sinkjax.models.finite import not_finite
from sinkjax.models.sampling import NO_TOKEN, Sampler, draw, make_sampler
from sinkjax.programs.executable import Executable

MAX_STOP_TOKENS = 32
"""Stop tokens that an executable can be given: their number is part of its shapes."""

Prompts = Sequence[int] | Sequence[Sequence[int]] | np.ndarray | jax.Array
OnTokens = Callable[[int, list[int]], None]

_IDS = 'token ids, such as tokenizer(text)["input_ids"] gives'


class Generator(abc.ABC):
    """A program, or the programs of a plan, that continues prompts."""

    @abc.abstractmethod
    def _sizes(self) -> tuple[int, int]:
        """V, and the tokens that a prompt has room for with its new ones."""

    @abc.abstractmethod
    def _run(self, request: Request, rows: list[Row], on_tokens: OnTokens | None) -> None:
        """Generates the new tokens of every row."""

    def generate(
        self,
        prompts: Prompts,
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        stop_tokens: Iterable[int] = (),
        seed: int | Sequence[int] = 0,
        on_tokens: OnTokens | None = None,
    ) -> np.ndarray | list[np.ndarray]:
        """Continues prompts, any number of them, of any lengths.

        One that is longer than every bucket is prefilled in pieces.

        Args:
          prompts: token ids: one prompt, or a sequence of prompts.
          max_new_tokens: for each prompt.
          temperature, top_k, top_p: as in `sinkjax.models.sampling`; temperature 0 is greedy.
          stop_tokens: ids that end a row, at most `MAX_STOP_TOKENS` of them.
          seed: one for each prompt, or a number s for s, s + 1, ... A prompt's tokens depend on its
            seed and on nothing else: not on what is beside it, not on `steps_per_call`.
          on_tokens: called with (prompt's index, its new tokens) as they come, the first one alone.

        Returns:
          the new tokens, int32, the stop token at their end where one was drawn; a list of such
          arrays for a sequence of prompts.

        Raises:
          InputError: listing every prompt that is empty, holds an id outside the vocabulary or has
            no room for `max_new_tokens`, and every setting that is out of its range; and as soon
            as logits are not finite.
          ValueError: for a program that is only for reading.
        """
        single = _is_single(prompts)
        if is_traced(prompts):
            text = "they are traced: generate outside of jax.jit; inside, use prefill and decode"
            raise InputError(Problem("prompts", None, text))
        arrays = [_as_array(prompts)] if single else list(map(_as_array, prompts))
        vocab_size, max_length = self._sizes()
        problems: list[Problem | str] = []
        new = whole(max_new_tokens) or 0
        if new < 1:
            text = "whole numbers from 1 on are allowed"
            problems.append(Problem("max_new_tokens", max_new_tokens, text))
        for index, tokens in enumerate(arrays):
            which = "the prompt" if single else f"prompt {index}"
            of_prompt = [*prompt_problems(tokens, vocab_size)]
            if not of_prompt and len(tokens) + max(new, 0) > max_length:
                of_prompt.append(_no_room(len(tokens), new, max_length))
            problems += [f"{which} {problem}" for problem in of_prompt]
        given = _items(stop_tokens)
        stops = list(dict.fromkeys(map(whole, given)))
        if len(stops) > MAX_STOP_TOKENS:
            problems.append(Problem("stop_tokens", stops, f"at most {MAX_STOP_TOKENS} are allowed"))
        for stop in given:
            if not 0 <= (-1 if (token := whole(stop)) is None else token) < vocab_size:
                text = f"the vocabulary has ids 0 to {vocab_size - 1}"
                problems.append(Problem("stop_tokens", stop, text))
        count, first_seed = len(arrays), whole(seed)
        seeds = _items(seed) if first_seed is None else [first_seed + i for i in range(count)]
        if len(seeds) != count:
            problems.append(Problem("seed", seeds, f"give one for each of the {count} prompts"))
        if not (on_tokens is None or callable(on_tokens)):
            problems.append(Problem("on_tokens", on_tokens, "a function is needed, or none"))
        sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        try:
            make_sampler(seeds, **sampling)
        except InputError as error:
            problems += error.problems
        if problems:
            raise InputError(*problems)
        padding = [NO_TOKEN] * (MAX_STOP_TOKENS - len(stops))
        rows = [
            Row(index, tokens.astype(np.int32), new, row_seed)
            for index, (tokens, row_seed) in enumerate(zip(arrays, seeds, strict=True))
        ]
        self._run(Request(sampling, np.asarray(stops + padding, np.int32)), rows, on_tokens)
        drawn = [np.asarray(row.new, np.int32) for row in rows]
        return drawn[0] if single else drawn


@dataclasses.dataclass(frozen=True)
class Request:
    """The settings that all rows share.

    Attributes:
      sampling: of `sinkjax.models.sampling.make_sampler`.
      stop_tokens: int32 [MAX_STOP_TOKENS].
    """

    sampling: Mapping[str, Any]
    stop_tokens: np.ndarray


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
    """The results of one call of the decode executable. A pytree.

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


@dataclasses.dataclass(frozen=True, eq=False)
class Program(Generator):
    """The executables of one model, and their arguments.

    Attributes:
      model: the one compiled; its arrays are shared, not copied.
      structure: the model as it was compiled, with runs of like layers where they are scanned.
      batch_size: B, rows of every call.
      max_length: tokens that a row's cache has room for, the prompt's and the new ones'.
      steps_per_call: decode steps of one call at most.
      prefill: by bucket, the padded length T.
      attention: the kernel that computes it, by bucket.
      decode: one step for every row, up to `steps_per_call` times.
      parameters: the model's arrays by name, the first argument of every executable; None where
        they are abstract or were compiled for a device that is not here: to be read, not run.
      build_extend: compiles `extend`.
    """

    model: nnx.Module
    structure: nnx.Module
    batch_size: int
    max_length: int
    steps_per_call: int
    prefill: Mapping[int, Executable]
    attention: Mapping[int, Kernel]
    decode: Executable
    parameters: Mapping[str, jax.Array] | None
    build_extend: Callable[[], Executable] = dataclasses.field(repr=False)

    @functools.cached_property
    def extend(self) -> Executable:
        """A further piece of a prompt, as long as the longest bucket; compiled when asked for.

        It is not one of `executables`: a program whose prompts have buckets has no need of it.
        """
        return self.build_extend()

    @property
    def executables(self) -> tuple[Executable, ...]:
        """Prefill by ascending bucket, then decode."""
        return (*self.prefill.values(), self.decode)

    def length_of(self, executable: Executable) -> int | None:
        """The bucket of one of the executables; None for decode."""
        return next((length for length, e in self.prefill.items() if e is executable), None)

    def kernel_of(self, executable: Executable) -> Kernel:
        """The kernel of one of the executables; decode steps have `xla` alone."""
        length = self.length_of(executable)
        return XLA if length is None else self.attention[length]

    @property
    def compile_seconds(self) -> float:
        """Lowering and compiling together, of all executables and, once it is there, `extend`."""
        built = [*self.executables, *filter(None, [vars(self).get("extend")])]
        return sum(e.lowering_seconds + e.compile_seconds for e in built)

    def _sizes(self) -> tuple[int, int]:
        return self.model.config.vocab_size, self.max_length

    def _run(self, request: Request, rows: list[Row], on_tokens: OnTokens | None) -> None:
        run(self, rows, request, on_tokens)


def run(
    program: Program,
    rows: Iterable[Row],
    request: Request,
    on_tokens: OnTokens | None,
    *,
    up_to: int | None = None,
) -> None:
    """Generates for rows of any number and lengths; each gets its new tokens in `new`.

    Rows of like length go together, so that short prompts do not pay for a long one's bucket.

    Args:
      program, request, on_tokens: as of `Generator.generate`.
      rows: each with a budget, and no longer than the program has room for.
      up_to: no token is drawn after more tokens than these; None for no such end.
    """
    if program.parameters is None:
        raise ValueError("the program was compiled to be read: without weights, or for a device")
    order = sorted(rows, key=lambda row: row.length)
    for start in range(0, len(order), program.batch_size):
        batch = order[start : start + program.batch_size]
        _Batch(program, batch, request, on_tokens, up_to).run()


class _Batch:
    """Rows that go through the executables together, from prefill to the last token."""

    def __init__(
        self,
        program: Program,
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
        program, stop_tokens = self._program, self._request.stop_tokens
        token, cache = self._prefill()
        self._deliver(to_host(token)[:, None], [1] * len(self._rows))
        remaining = np.asarray([*map(self._remaining, self._rows)] + [0] * self._idle, np.int32)
        calls, unread = -(-int(remaining.max()) // program.steps_per_call), None
        arguments = token, cache, remaining, self._sampler, stop_tokens
        *_, remaining, sampler, stop_tokens = program.decode.placed(*arguments)
        for _ in range(calls):
            steps = program.decode.compiled(
                program.parameters, token, cache, remaining, sampler, stop_tokens
            )
            token, cache, remaining = steps.token, steps.cache, steps.remaining
            if unread is not None and self._read(unread):
                return  # the call just made had nothing to do
            unread = steps
        if unread is not None:
            self._read(unread)

    def _prefill(self) -> tuple[jax.Array, Any]:
        """The first new token, int32 [B], and the cache.

        Of a prompt in pieces the first is the short one, so that the last ends with its last token
        and needs no more room than that.
        """
        program, longest_bucket = self._program, max(self._program.prefill)
        lengths = np.asarray([row.length for row in self._rows] + [1] * self._idle, np.int32)
        longest = int(lengths.max())
        tokens = np.zeros((program.batch_size, longest + longest_bucket), np.int32)
        for index, row in enumerate(self._rows):
            tokens[index, : row.length] = [*row.prompt, *row.new]
        at = (longest - 1) % longest_bucket + 1 if longest > longest_bucket else longest
        bucket = min(b for b in program.prefill if b >= at)
        prefill = program.prefill[bucket]
        prompt = tokens[:, :bucket], np.minimum(lengths, at), lengths, self._sampler
        token, cache = prefill.compiled(program.parameters, *prefill.placed(*prompt))
        for start in range(at, longest, longest_bucket):
            piece = tokens[:, start : start + longest_bucket]
            further = program.extend.placed(piece, cache, lengths, token, self._sampler)
            token, cache = program.extend.compiled(program.parameters, *further)
        return token, cache

    def _remaining(self, row: Row) -> int:
        """Tokens that a row may still draw here."""
        if self._up_to is None:
            return row.budget
        return min(row.budget, max(0, self._up_to - row.length + 1))

    def _read(self, steps: Steps) -> bool:
        """Waits for a call and delivers what it drew; whether all rows are done."""
        tokens, drawn, remaining = to_host((steps.tokens, steps.drawn, steps.remaining))
        self._deliver(tokens, drawn.tolist())
        return not remaining.any()

    def _deliver(self, tokens: np.ndarray, drawn: Sequence[int]) -> None:
        for row, drawn_tokens, count in zip(self._rows, tokens.tolist(), drawn, strict=False):
            if not count:
                continue
            new = drawn_tokens[:count]
            if NO_TOKEN in new:
                length = row.length + new.index(NO_TOKEN)
                raise not_finite("logits", f" after {length} tokens of prompt {row.index}")
            row.new += new
            row.budget = 0 if new[-1] in self._request.stop_tokens else row.budget - count
            if self._on_tokens is not None:
                self._on_tokens(row.index, new)


def prompt_problems(tokens: np.ndarray, vocab_size: int) -> Iterator[str]:
    """What is wrong with one prompt's tokens, whatever room there is for them."""
    if tokens.size == 0:
        yield "is empty; at least one token is needed"
    elif tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        kind = "text" if tokens.dtype.kind in "SU" else f"{tokens.dtype} {tokens.shape}"
        yield f"is {kind}; {_IDS}, whole numbers [T], are needed"
    elif (outside := tokens[(tokens < 0) | (tokens >= vocab_size)]).size:
        yield f"holds token {outside[0]}; the vocabulary has ids 0 to {vocab_size - 1}"


def _no_room(size: int, max_new_tokens: int, max_length: int) -> str:
    most = max_length - size
    advice = f"Ask for at most {most}" if most > 0 else "Give a shorter one"
    return (
        f"has {size} tokens, which with max_new_tokens {max_new_tokens} is more than max_length, "
        f"{max_length}. {advice}, or compile for more"
    )


def _is_single(prompts: Prompts) -> bool:
    """Whether it is one prompt, as a list without anything in it is: an empty one."""
    if isinstance(prompts, np.ndarray | jax.Array):
        return prompts.ndim < 2
    if isinstance(prompts, str | bytes) or not isinstance(prompts, Sequence):
        kind = type(prompts).__name__
        raise InputError(Problem("prompts", None, f"{_IDS}, are needed, not {kind}"))
    first = prompts[0] if prompts else 0
    if isinstance(first, np.ndarray | jax.Array):
        return first.ndim == 0
    return not isinstance(first, Sequence)


def _items(values: Any) -> list[Any]:
    """What there is to go over, or a single value."""
    try:
        return list(values)
    except TypeError:
        return [values]


def _as_array(tokens: Any) -> np.ndarray:
    try:
        return np.asarray(tokens)
    except ValueError:  # lists of different lengths within
        return np.asarray(tokens, object)
