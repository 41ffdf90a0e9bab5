"""One function compiled ahead of time: its executable, and the time and memory that it takes."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import jax

from sinkjax.distributed import outside_meshes
from sinkjax.errors import InputError, first_line
from sinkjax.models.sharding import place
from sinkjax.programs.hlo import Module
from sinkjax.programs.targets import lowering_for


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on the device, as XLA's buffer assignment has them, padding included.

    Attributes:
      arguments: parameters among them.
      outputs: `aliased` of them lie in the arguments' place.
      aliased: donated arguments that outputs are written over.
      temporary: needed beside both while it runs.
      code: the executable itself; 0 where the platform does not say.
    """

    arguments: int
    outputs: int
    aliased: int
    temporary: int
    code: int

    @property
    def peak(self) -> int:
        """Bytes on the device at once, code apart."""
        return self.arguments + self.outputs - self.aliased + self.temporary


@dataclasses.dataclass(frozen=True, eq=False)
class Executable:
    """One compiled XLA executable, with its times, memory and cost.

    Attributes:
      name: `prefill 64`, by its bucket, or `decode`.
      compiled: to call, and to read.
      arguments: the `jax.ShapeDtypeStruct`s that it was compiled for.
      lowering_seconds: tracing in JAX, to StableHLO.
      compile_seconds: XLA's part.
      from_cold: whether the compile time is XLA's own: JAX's persistent cache was off.
      memory: its bytes.
      flops: XLA's own count, a loop's body once; None where it does not count.
      bytes_accessed: likewise, read and written by all instructions.
    """

    name: str
    compiled: jax.stages.Compiled
    arguments: tuple[Any, ...]
    lowering_seconds: float
    compile_seconds: float
    from_cold: bool
    memory: Memory
    flops: float | None
    bytes_accessed: float | None

    @functools.cached_property
    def module(self) -> Module:
        """Its optimized HLO, read and counted."""
        return Module(self.compiled.as_text())

    def placed(self, *arguments: Any) -> tuple[Any, ...]:
        """Returns all arguments after the parameters, with NumPy's arrays put where it reads them.

        Given as they are, they would be moved without being asked for: a transfer guard forbids it.
        """

        def put(values: Any, read: jax.ShapeDtypeStruct) -> jax.Array:
            return values if isinstance(values, jax.Array) else place(values, read.sharding)

        return jax.tree.map(put, arguments, self.arguments[1:])


def is_out_of_memory(error: Exception) -> bool:
    """Returns whether an error is Python's or XLA's for memory that does not suffice."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


@outside_meshes()
def build(
    name: str,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    *,
    donate: tuple[int, ...] = (),
    out_shardings: Any = None,
    compiler_options: Mapping[str, Any] | None = None,
    device: jax.Device | None = None,
) -> Executable:
    """Lowers and compiles a function of `arguments`, pytrees of `jax.ShapeDtypeStruct`; times both.

    The outputs may take the memory of the arguments at the positions `donate`. `device` is the one
    that the arguments lie on, where it is not here.
    """
    options = {} if out_shardings is None else {"out_shardings": out_shardings}
    jitted = jax.jit(function, donate_argnums=donate, **options)
    start = time.perf_counter()
    with nullcontext() if device is None else lowering_for(device):
        lowered = jitted.lower(*arguments)
    lowered_at = time.perf_counter()
    try:
        compiled = lowered.compile(compiler_options=compiler_options and dict(compiler_options))
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        advice = "divide it over more devices, or ask for fewer rows or a shorter cache"
        text = f"{name} does not fit the device ({first_line(error)}); {advice}"
        raise InputError(text) from error
    compiled_at = time.perf_counter()
    stats = compiled.memory_analysis()
    cost = compiled.cost_analysis() or {}
    return Executable(
        name=name,
        compiled=compiled,
        arguments=arguments,
        lowering_seconds=lowered_at - start,
        compile_seconds=compiled_at - lowered_at,
        from_cold=not (
            jax.config.jax_enable_compilation_cache and jax.config.jax_compilation_cache_dir
        ),
        memory=Memory(
            arguments=stats.argument_size_in_bytes,
            outputs=stats.output_size_in_bytes,
            aliased=stats.alias_size_in_bytes,
            temporary=stats.temp_size_in_bytes,
            code=stats.generated_code_size_in_bytes,
        ),
        flops=cost.get("flops"),
        bytes_accessed=cost.get("bytes accessed"),
    )
