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

from sinkjax.distributed import NEURONS, outside_meshes
from sinkjax.errors import (
    InputError,
    Problem,
    check_items,
    check_kind,
    check_whole,
    is_one_of,
    problems_of,
    whole,
)
from sinkjax.models.config import MOST_SIZE, LlamaConfig
from sinkjax.models.decoder import Llama, check_model
from sinkjax.models.rules import cache_specs, partition
from sinkjax.models.sampling import Sampler, draw
from sinkjax.models.sharding import fitting_rows, on_devices, row_shards
from sinkjax.programs.executable import Executable, build
from sinkjax.programs.generate import MAX_STOP_TOKENS, Program, Steps, decode_steps
from sinkjax.programs.options import DEFAULT_ATTENTION, choose, choose_attention
from sinkjax.programs.scan import scanned

DEFAULT_STEPS_PER_CALL = 16
"""The fastest of 1, 4, 16 and 64 for SmolLM2-135M on two cores; 1 took 1.22 times as long."""

Layers = Literal["unrolled", "scanned"]
LAYERS: tuple[str, ...] = get_args(Layers)


@outside_meshes()
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
        mesh, and then so does the program: its rows and cache as `sinkjax.models.rules` says.
        They may be abstract (`jax.ShapeDtypeStruct`), and then the program is for reading.
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

    Returns:
      the program: its `generate` continues prompts, its `executables` say what they cost.

    Raises:
      InputError: for sizes below 1, no buckets, buckets beyond `max_length`, a `max_length` beyond
        the model's own, rows that attention over a mesh's axis `neurons` cannot divide, an unknown
        form of layers, attention that cannot be computed so, or a model that is traced, as under
        `jax.jit`: a program runs outside of others.
    """
    check_model(model, values=True)
    check_kind("device", device, jax.Device | None, "a jax.Device, as of jax.devices(), or none,")
    buckets, max_length = choose_sizes(model, prefill_lengths, max_length)
    _check(model, batch_size, buckets, max_length, steps_per_call, layers)
    structure = scanned(model) if layers == "scanned" else model
    graph, state = nnx.split(structure)
    names = {path: ".".join(map(str, path)) for path, _ in nnx.to_flat_state(state)}
    parameters = {names[path]: on_devices(v.get_value()) for path, v in nnx.to_flat_state(state)}
    placement = _Placement(parameters, device)
    platform = placement.platform, placement.devices
    choice = choose(*platform)
    dtype = model.embedding.dtype
    kernels = choose_attention(attention, *platform, buckets, model.config, dtype)

    def merged(arrays: Mapping[str, jax.Array]) -> nnx.Module:
        own = nnx.map_state(lambda path, v: v.replace(arrays[names[path]]), state)
        return nnx.merge(graph, own)

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
    row, seed = placement.rows((batch_size,)), placement.rows((batch_size,), jnp.uint32)
    number, whole = placement.array((), jnp.float32), placement.array(())
    sampler = Sampler(seed, temperature=number, top_k=whole, top_p=number)
    stop_tokens = placement.array((MAX_STOP_TOKENS,))
    of_prompts = {"compiler_options": choice.prompt_options, "device": placement.target}
    executables: dict[int, Executable] = {}
    cache = None
    for bucket in buckets:
        tokens = placement.rows((batch_size, bucket))
        arguments = weights, tokens, row, row, sampler
        of_bucket = functools.partial(prefill, kernels[bucket])
        if cache is None and placement.mesh is not None:
            shapes = jax.eval_shape(of_bucket, *arguments)[1]
            cache = placement.laid(shapes, cache_specs(structure.layers, shapes, placement.mesh))
        executables[bucket] = build(
            f"prefill {bucket}",
            of_bucket,
            arguments,
            out_shardings=placement.outputs((row, cache)),
            **of_prompts,
        )
        if cache is None:
            cache = placement.described(executables[bucket].compiled.out_info[1])

    def build_extend() -> Executable:
        tokens = placement.rows((batch_size, buckets[-1]))
        return build(
            f"extend {buckets[-1]}",
            extend,
            (weights, tokens, cache, row, row, sampler),
            donate=(2,),
            out_shardings=placement.outputs((row, cache)),
            **of_prompts,
        )

    steps = placement.rows((batch_size, steps_per_call))
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
            out_shardings=placement.outputs(Steps(cache, row, row, steps, row)),
            compiler_options=choice.decode_options,
            device=placement.target,
        ),
        build_extend=build_extend,
        parameters=parameters if placement.runs_here else None,
    )


def choose_sizes(
    model: Llama, prefill_lengths: Iterable[int] | None, max_length: int | None
) -> tuple[list[int], int]:
    """The buckets in order, and the room, where either may be left to be chosen.

    What is no whole number is left for `size_problems`.
    """
    if max_length is None:
        own = longest_context(model.config)
        max_length = 1024 if own is None else min(1024, own)
    max_length = number if (number := whole(max_length)) is not None else max_length
    if prefill_lengths is None:
        most = whole(max_length) or MOST_SIZE
        prefill_lengths = (min(bucket, most) for bucket in (64, 512))
    text = "a sequence of buckets is needed, such as (64, 512)"
    buckets = list(check_items("prefill_lengths", prefill_lengths, text))
    numbers = [whole(bucket) for bucket in buckets]
    return buckets if None in numbers else sorted(set(numbers)), max_length


def size_problems(**sizes: Iterable[Any]) -> list[Problem]:
    """The problems of those of each argument's sizes that none can be."""
    return [
        problem
        for name, values in sizes.items()
        for value in values
        for problem in problems_of(functools.partial(check_whole, name, value, 1, MOST_SIZE))
    ]


def longest_context(config: LlamaConfig) -> int | None:
    """Tokens that a model is made for; None where its rope is made to go beyond."""
    return None if config.rope.type == "dynamic" else config.context


class _Placement:
    """The place of the arguments of executables: one device, a mesh, or nowhere yet."""

    def __init__(self, parameters: Mapping[str, Any], device: jax.Device | None):
        self._parameters = parameters
        self._device = device
        concrete = all(isinstance(array, jax.Array) for array in parameters.values())
        self.runs_here = concrete and device is None
        self.mesh = None
        self._small = None if device is None else SingleDeviceSharding(device)
        if device is None:
            self._small = getattr(next(iter(parameters.values())), "sharding", None)
            if isinstance(self._small, NamedSharding):
                self.mesh = self._small.mesh
                self._small = NamedSharding(self.mesh, PartitionSpec())
        on = [jax.devices()[0]] if self._small is None else list(self._small.device_set)
        self.platform, self.devices = on[0].platform, len(on)
        # What is compiled for a device that is not here is told so.
        self.target = device if on[0] in jax.devices() else on[0]

    def array(self, shape: tuple[int, ...], dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        """A small argument; on a mesh, every device has all of it."""
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self._small)

    def rows(self, shape: tuple[int, ...], dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        """A small argument [B, ...]; on a mesh, its rows lie over the axis `data`."""
        if self.mesh is None:
            return self.array(shape, dtype)
        rows = partition(("batch",), shape[:1], self.mesh)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(self.mesh, rows))

    def weights(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The parameters, each where it lies."""
        return {
            name: _described(array, self._small if self.mesh is None else array.sharding)
            for name, array in self._parameters.items()
        }

    def described(self, arrays: Any) -> Any:
        """Outputs of one executable as arguments of the next, on one device.

        Nothing is left open there. Asking the executable would make what is compiled next depend on
        whether it came from the persistent cache.
        """
        return jax.tree.map(lambda array: _described(array, self._small), arrays)

    def laid(self, arrays: Any, specs: Any) -> Any:
        """Arguments that lie over the mesh as the specs say."""
        over = functools.partial(NamedSharding, self.mesh)
        return jax.tree.map(lambda array, spec: _described(array, over(spec)), arrays, specs)

    def outputs(self, arrays: Any) -> Any:
        """Returns shardings, for `jax.jit`, of outputs like these arguments; None on one device."""
        return None if self.mesh is None else jax.tree.map(lambda a: a.sharding, arrays)


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
    no_lengths = size_problems(max_length=[max_length], prefill_lengths=buckets)
    problems = no_lengths + size_problems(batch_size=[batch_size], steps_per_call=[steps_per_call])
    if not buckets:
        problems.append(Problem("prefill_lengths", None, "give at least one bucket"))
    elif not no_lengths and buckets[-1] > max_length:
        text = f"more than max_length, {max_length}: a prompt that long would leave no room"
        problems.append(Problem("prefill_lengths", buckets[-1], text))
    own = longest_context(model.config)
    if own is not None and not no_lengths and max_length > own:
        text = f"the model is made for {own} tokens"
        problems.append(Problem("max_length", max_length, text))
    rows = whole(batch_size) or 0
    if fitting_rows(model, rows) != rows:
        parts = row_shards(model)
        text = (
            f"attention divides rows in {parts}, over {NEURONS}: give a multiple of {parts}, or a "
            f"mesh that has model in the place of {NEURONS}"
        )
        problems.append(Problem("batch_size", batch_size, text))
    if not is_one_of(layers, LAYERS):
        problems.append(Problem("layers", layers, f"allowed are {', '.join(LAYERS)}"))
    if problems:
        raise InputError(*problems)
