"""A model compiled ahead of time: prefill by bucket, and a decode step that runs many times a call.

Weights are arguments of every executable, never constants in it: all executables of a model, and of
the models that share arrays with it, read the same buffers.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from sinkjax.errors import InputError, Problem
from sinkjax.models.config import LlamaConfig
from sinkjax.models.decoder import Llama
from sinkjax.models.sampling import Sampler, draw, whole
from sinkjax.programs.executable import Executable, build
from sinkjax.programs.generate import MAX_STOP_TOKENS, Program, Steps, decode_steps
from sinkjax.programs.options import DEFAULT_ATTENTION, choose, choose_attention
from sinkjax.programs.scan import scanned

DEFAULT_STEPS_PER_CALL = 16
"""The fastest of 1, 4, 16 and 64 for SmolLM2-135M on two cores; 1 took 1.22 times as long."""

Layers = Literal["unrolled", "scanned"]
LAYERS: tuple[str, ...] = get_args(Layers)


def compile(
    model: Llama,
    *,
    batch_size: int = 1,
    prefill_lengths: Iterable[int] | None = None,
    max_length: int | None = None,
    steps_per_call: int = DEFAULT_STEPS_PER_CALL,
    layers: Layers = "unrolled",
    attention: str = DEFAULT_ATTENTION,
    device: jax.Device | None = None,
) -> Program:
    """Compiles a model's prefill and decode ahead of time.

    Args:
      model: a `Llama`, or what `sinkjax.specialize` makes of one. Its parameters may lie over a
        mesh, and then so does the program. They may be abstract (`jax.ShapeDtypeStruct`), and then
        the program is for reading.
      batch_size: rows of every call; more prompts than that take several, fewer leave rows idle.
      prefill_lengths: the buckets, to which prompts are padded. A prompt longer than the longest
        comes in pieces as long as that one, by an executable that the first such prompt compiles.
        None for 64 and 512, as far as there is room.
      max_length: tokens that a row has room for, the prompt's and the new ones'. None for 1024, or
        as many as the model is made for.
      steps_per_call: decode steps per device call, and so the grain of streaming.
      layers: `unrolled` compiles each layer by itself and reads the model's own arrays. `scanned`
        compiles a run of like layers once (`sinkjax.programs.scan`): compile time no longer grows
        with depth, weights are copied once to be stacked, and a decode step took 1.6 times as
        long on a CPU (SmolLM2-135M, 30 layers), where a loop copies each layer's weights before
        it reads them.
      attention: what computes a prompt's, one of `options.ATTENTION`; `Program.attention`
        says what that came to. Heads whose attention is copied, further pieces of a prompt, and
        decoding have `xla` alone.
      device: to compile for, such as `sinkjax.programs.targets.target_device` gives: the program is
        then for reading. None for where the parameters lie.

    Raises:
      InputError: for sizes below 1, no buckets, buckets beyond `max_length`, a `max_length` beyond
        the model's own, an unknown form of layers, or attention that cannot be computed so.
    """
    buckets, max_length = choose_sizes(model, prefill_lengths, max_length)
    _check(model, batch_size, buckets, max_length, steps_per_call, layers)
    structure = scanned(model) if layers == "scanned" else model
    graph, state = nnx.split(structure)
    variables = {".".join(map(str, path)): (path, v) for path, v in nnx.to_flat_state(state)}
    parameters = {name: variable.get_value() for name, (_, variable) in variables.items()}
    placement = _Placement(parameters, device)
    platform = placement.platform, placement.devices
    choice = choose(*platform)
    dtype = model.embedding.dtype
    kernels = choose_attention(attention, *platform, buckets, model.config, dtype)

    def merged(arrays: Mapping[str, jax.Array]) -> nnx.Module:
        flat = [(path, v.replace(arrays[name])) for name, (path, v) in variables.items()]
        return nnx.merge(graph, nnx.from_flat_state(flat))

    def prefill(kernel, parameters, tokens, lengths, final_lengths, sampler):
        logits, cache = merged(parameters).prefill(
            tokens,
            lengths=lengths,
            max_length=max_length,
            final_lengths=final_lengths,
            products=choice.products,
            kernel=kernel,
        )
        return draw(logits, sampler, lengths), cache

    def extend(parameters, tokens, cache, lengths, token, sampler):
        ended = lengths <= cache.lengths
        logits, cache = merged(parameters).extend(
            tokens, cache, lengths=lengths, products=choice.products
        )
        return jnp.where(ended, token, draw(logits, sampler, lengths)), cache

    def decode(parameters, token, cache, remaining, sampler, stop_tokens):
        step = functools.partial(merged(parameters).decode, products=choice.products)
        return decode_steps(step, steps_per_call, token, cache, remaining, sampler, stop_tokens)

    weights = placement.weights()
    row, seed = placement.array((batch_size,)), placement.array((batch_size,), jnp.uint32)
    number, whole = placement.array((), jnp.float32), placement.array(())
    sampler = Sampler(seed, temperature=number, top_k=whole, top_p=number)
    stop_tokens = placement.array((MAX_STOP_TOKENS,))
    of_prompts = {"compiler_options": choice.prompt_options, "device": device}
    executables: dict[int, Executable] = {}
    cache = None
    for bucket in buckets:
        tokens = placement.array((batch_size, bucket))
        # Where XLA lays one bucket's cache over a mesh is where all do: one decode serves them.
        executables[bucket] = build(
            f"prefill {bucket}",
            functools.partial(prefill, kernels[bucket]),
            (weights, tokens, row, row, sampler),
            out_shardings=None if cache is None else (None, placement.output_shardings(cache)),
            **of_prompts,
        )
        if cache is None:
            cache = placement.output(executables[bucket].compiled, 1)

    def build_extend() -> Executable:
        tokens = placement.array((batch_size, buckets[-1]))
        return build(
            f"extend {buckets[-1]}",
            extend,
            (weights, tokens, cache, row, row, sampler),
            donate=(2,),
            out_shardings=(None, placement.output_shardings(cache)),
            **of_prompts,
        )

    return Program(
        model=model,
        structure=structure,
        batch_size=batch_size,
        max_length=max_length,
        steps_per_call=steps_per_call,
        prefill=executables,
        attention=kernels,
        decode=build(
            "decode",
            decode,
            (weights, row, cache, row, sampler, stop_tokens),
            donate=(2,),
            out_shardings=Steps(placement.output_shardings(cache), None, None, None, None),
            compiler_options=choice.decode_options,
            device=device,
        ),
        build_extend=build_extend,
        parameters=parameters if placement.runs_here else None,
    )


def choose_sizes(
    model: Llama, prefill_lengths: Iterable[int] | None, max_length: int | None
) -> tuple[list[int], int]:
    """The buckets in order, and the room, where either may be left to be chosen."""
    if max_length is None:
        own = longest_context(model.config)
        max_length = 1024 if own is None else min(1024, own)
    if prefill_lengths is None:
        prefill_lengths = (min(bucket, max_length) for bucket in (64, 512))
    return sorted(set(prefill_lengths)), max_length


def longest_context(config: LlamaConfig) -> int | None:
    """Tokens that a model is made for; None where its rope is made to go beyond."""
    return None if config.rope.type == "dynamic" else config.max_length


class _Placement:
    """The place of the arguments of executables: one device, a mesh, or nowhere yet."""

    def __init__(self, parameters: Mapping[str, Any], device: jax.Device | None):
        self._parameters = parameters
        self._device = device
        concrete = all(isinstance(array, jax.Array) for array in parameters.values())
        self.runs_here = concrete and device is None
        self._mesh = None
        self._small = None if device is None else SingleDeviceSharding(device)
        if self.runs_here:
            sharding = next(iter(parameters.values())).sharding
            self._mesh = getattr(sharding, "mesh", None)
            if self._mesh is None:
                self._small = sharding
            else:
                self._small = NamedSharding(self._mesh, PartitionSpec())
        on = [jax.devices()[0]] if self._small is None else list(self._small.device_set)
        self.platform, self.devices = on[0].platform, len(on)

    def array(self, shape: tuple[int, ...], dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        """A small argument; on a mesh, every device has all of it."""
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self._small)

    def weights(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The parameters, each where it lies."""
        return {
            name: _described(array, array.sharding if self.runs_here else self._small)
            for name, array in self._parameters.items()
        }

    def output(self, compiled: jax.stages.Compiled, index: int) -> Any:
        """One output of an executable as an argument of the next: over a mesh, where XLA laid it.

        On one device nothing is left open; asking there would make what is compiled next depend on
        whether this executable came from the persistent cache.
        """
        arrays = compiled.out_info[index]
        if self._mesh is None:
            return jax.tree.map(lambda array: _described(array, self._small), arrays)
        return jax.tree.map(_described, arrays, compiled.output_shardings[index])

    def output_shardings(self, arrays: Any) -> Any:
        """For `jax.jit`, of outputs that have to lie as these arguments do."""
        return None if self._mesh is None else jax.tree.map(lambda a: a.sharding, arrays)


def _described(array: Any, sharding: Sharding | None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)


def _check(
    model: Llama,
    batch_size: int,
    buckets: Sequence[int],
    max_length: int,
    steps_per_call: int,
    layers: str,
) -> None:
    problems = []
    sizes = {"batch_size": batch_size, "max_length": max_length, "steps_per_call": steps_per_call}
    for name, value in [*sizes.items(), *(("prefill_lengths", bucket) for bucket in buckets)]:
        if (whole(value) or 0) < 1:
            problems.append(Problem(name, value, "whole numbers from 1 on are allowed"))
    if not buckets:
        problems.append(Problem("prefill_lengths", None, "give at least one bucket"))
    elif buckets[-1] > max_length:
        text = f"more than max_length, {max_length}: a prompt that long would leave no room"
        problems.append(Problem("prefill_lengths", buckets[-1], text))
    own = longest_context(model.config)
    if own is not None and max_length > own:
        text = f"the model is made for {own} tokens"
        problems.append(Problem("max_length", max_length, text))
    if layers not in LAYERS:
        problems.append(Problem("layers", layers, f"allowed are {', '.join(LAYERS)}"))
    if problems:
        raise InputError(*problems)
