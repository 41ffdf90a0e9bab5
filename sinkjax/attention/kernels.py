"""What computes a prompt's attention on the paths `full` and `window`, by name.

`xla` is written in JAX's own operations (`full.py`, `window.py`) and compiled by XLA for any
platform. A kernel is made for one platform, keeps scores on the chip, and works on those blocks of
queries and keys of which a head's path leaves anything; the others are not there. A kernel refuses
what it cannot compute. None steps in for another; `sinkjax.programs.options` says what a name is.

Under every name `xla` computes heads whose pattern later layers copy, since a kernel keeps none,
and all decode steps.
"""

import abc
import dataclasses
import math
import re
from collections.abc import Iterable, Iterator
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import DTypeLike

from sinkjax.attention.blocks import PerHead, PerKvHead, scale_queries
from sinkjax.attention.full import causal_attention
from sinkjax.attention.products import PLAIN, Products
from sinkjax.attention.stream import STREAMED, streamed_attention
from sinkjax.attention.window import window_attention
from sinkjax.errors import InputError
from sinkjax.masks.paths import Full, Window, reach


class Kernel(abc.ABC):
    """A way to compute a prompt's attention. Frozen and hashable.

    Attributes:
      name: by which it is chosen.
      platform: that it is made for, as `jax.Device.platform` names it; None for any.
    """

    name: ClassVar[str]
    platform: ClassVar[str | None] = None

    @abc.abstractmethod
    def attend(
        self,
        q: PerHead,
        k: PerKvHead,
        v: PerKvHead,
        path: Full | Window,
        products: Products = PLAIN,
        cap: float | None = None,
    ) -> PerHead:
        """Returns the outputs of heads that are all on one path, in v's dtype.

        Scores and softmax are float32, and scores `capped` where there is a cap. `products` is how
        `xla` writes its products; kernels have their own.

        Raises:
          InputError: for what `problems` says.
        """

    def problems(self, length: int, head_dim: int, dtype: DTypeLike) -> list[str]:
        """Returns why it cannot compute T tokens and heads of size H in a dtype."""
        return []


@dataclasses.dataclass(frozen=True)
class Xla(Kernel):
    """JAX's own operations, which XLA compiles.

    Attributes:
      streams: whether keys of longer prompts come in blocks as queries do, on the path `full` and
        in wide windows: the faster form on a CPU's caches.
    """

    name: ClassVar[str] = "xla"

    streams: bool = False

    def streamed(self, path: Full | Window, length: int) -> bool:
        """Returns whether keys of T tokens come in blocks: of few blocks nothing is gained."""
        wide = isinstance(path, Full) or path.recent >= STREAMED
        return self.streams and wide and length > 2 * STREAMED

    def attend(
        self,
        q: PerHead,
        k: PerKvHead,
        v: PerKvHead,
        path: Full | Window,
        products: Products = PLAIN,
        cap: float | None = None,
    ) -> PerHead:
        path = reach(path, q.shape[1])
        if self.streamed(path, q.shape[1]):
            return streamed_attention(q, k, v, products, cap=cap, path=path)
        if isinstance(path, Window):
            return window_attention(q, k, v, path, products, cap)
        return causal_attention(q, k, v, products, cap)


XLA = Xla()


@dataclasses.dataclass(frozen=True)
class Blocked(Kernel):
    """A kernel that works on blocks of queries and keys. It has no gradient.

    Attributes:
      interpret: whether JAX's interpreter of kernels computes it, on any platform, slowly: for
        tests.
    """

    multiple: ClassVar[int] = 128  # of which T has to be one
    dtypes: ClassVar[tuple[str, ...]] = ("bfloat16", "float32")

    interpret: bool = False

    @abc.abstractmethod
    def blocks(self, path: Full | Window, length: int) -> tuple[int, int]:
        """Queries and keys a block; both divide T."""

    @abc.abstractmethod
    def _attend(
        self, q: PerHead, k: PerKvHead, v: PerKvHead, path: Full | Window, cap: float | None
    ) -> PerHead:
        """Computes `attend` of scaled queries, and of shapes without problems."""

    def attend(
        self,
        q: PerHead,
        k: PerKvHead,
        v: PerKvHead,
        path: Full | Window,
        products: Products = PLAIN,
        cap: float | None = None,
    ) -> PerHead:
        if problems := self.problems(q.shape[1], q.shape[3], q.dtype):
            raise InputError(
                *(f"{self.name} cannot compute {problem}; give kernel=XLA" for problem in problems)
            )
        path = reach(path, q.shape[1])
        within = path.within if isinstance(path, Window) else None
        with jax.named_scope(f"{self.name}:{path}" + (f":{within}" if within else "")):
            return self._attend(scale_queries(q), k, v, path, cap)

    def problems(self, length: int, head_dim: int, dtype: DTypeLike) -> list[str]:
        problems = []
        if length % self.multiple:
            problems.append(
                f"a prompt of {length} tokens ({self.name} takes multiples of {self.multiple})"
            )
        if jnp.dtype(dtype).name not in self.dtypes:
            problems.append(
                f"numbers in {jnp.dtype(dtype).name} ({self.name} takes {', '.join(self.dtypes)})"
            )
        return problems

    def read_path(self, scopes: Iterable[str]) -> Full | Window | None:
        """Returns the path of a call made in `jax.named_scope`s; None if not of this kernel."""
        for scope in scopes:
            match = re.search(rf"/{self.name}:(?:full|window\((\d+),(\d+)\)(?::(\d+))?)/", scope)
            if match is not None:
                sizes = [int(size) for size in match.groups() if size]
                return Window(*sizes) if sizes else Full()
        return None

    def pairs(self, path: Full | Window, length: int) -> int:
        """Returns how many pairs of query and key a head's blocks hold, hidden pairs included."""
        path = reach(path, length)
        block_q, block_kv = self.blocks(path, length)
        return sum(
            (apart + stop - first) * block_q * block_kv
            for apart, first, stop in visited(path, length, block_q, block_kv)
        )


def span(path: Full | Window, length: int) -> tuple[int, int]:
    """Returns c and w of a path over T tokens."""
    return (path.sinks, path.recent) if isinstance(path, Window) else (0, length)


def visited(
    path: Full | Window, length: int, block_q: int, block_kv: int
) -> Iterator[tuple[int, int, int]]:
    """Yields the blocks of keys that each block of queries can see, as (apart, first, stop).

    They are blocks 0 to apart - 1, of sinks before the recent keys, and first to stop - 1.
    """
    sinks, recent = span(path, length)
    for begin in range(0, length, block_q):
        first = max(0, begin - recent + 1) // block_kv
        yield min(math.ceil(sinks / block_kv), first), first, -(-(begin + block_q) // block_kv)


def power_of_two(most: int, length: int) -> int:
    """Returns the largest power of two, from `Blocked.multiple` to `most`, that divides T."""
    size = Blocked.multiple
    while size * 2 <= most and length % (size * 2) == 0:
        size *= 2
    return size
