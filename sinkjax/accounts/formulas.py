"""Costs of a mask's programs by formulas: from the config, the mask and the sizes alone.

Nothing here looks at a model, a plan or an executable: these are the formulas that compiled
executables are held against (`sinkjax.accounts.compiled`).

FLOPs are those of matrix products, a multiply and an add each. For one layer, B rows, T
queries a row (in decoding 1) and P pairs of a query and a key that are worked on:

  q, o    2 B T D H    a head with queries (`full`, `window`); with an output (all but `sink`)
  k, v    2 B T D H    a group with keys (a `full` or `window` head); with values (any but `sink`)
  scores  2 B P H      a `full` or `window` head
  sums    2 B P H      any head but `sink`; of a prompt, where no later layer copies the head,
          2 B P (H+1)  one column more, which sums the weights
  sink    2 B D H      in prefill alone: v_0 of a group that has only `sink` heads; and for each
                       group the sum of its `sink(first)` heads, and that of its other ones

Pairs of a prompt come in blocks: `full` computes every key up to the last one that its span of
blocks sees, `window` c + w - 1 + block keys a block. On a CPU beyond 1,024 tokens `full` and
windows of 512 recent tokens or more compute the whole blocks of keys before a query's own that its
block sees, of its own those up to its strip's end, and of windows c first keys and the oldest ones.
A kernel, which no copied head has, computes the blocks of which the path leaves anything, and has
no column more. In decoding a pair is a slot of the cache, and of one slot no sum is left. What a
CPU's products of few rows are padded by, three rows to four, is no work here, and an account of the
executable has it.

Where one norm is over the queries of all heads, and one over their keys, a layer that has any of
them projects all: those of no head's own are in the row `rest`.

What heads of a group share, k, v and their cache, counts to the group's strongest path, in the
order `full`, `window`, `copy`: it is gone when that path is.
"""

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from sinkjax.attention import full, stream, window
from sinkjax.attention.blocks import block_runs
from sinkjax.attention.kernels import XLA, Blocked, Kernel, Xla
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Copy, Full, Path, Sink, Window, reach
from sinkjax.models.config import LlamaConfig

ROWS = ("full", "window", "copy", "sink", "rest")
"""The rows of an account: the paths, and all that no mask touches."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """The needs of some part of an executable each time it runs.

    Attributes:
      flops: of matrix products.
      parameters: bytes of those that it reads.
      cache: bytes of the keys, values and biases that it keeps of a text.
    """

    flops: int = 0
    parameters: int = 0
    cache: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.flops + other.flops,
            self.parameters + other.parameters,
            self.cache + other.cache,
        )

    def record(self) -> dict[str, int]:
        """Returns the cost under the names that records have it by."""
        return {"operations": self.flops, "parameters": self.parameters, "cache": self.cache}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of one executable.

    Attributes:
      batch_size: B.
      length: T, the bucket of a prefill; None for a decode step.
      max_length: tokens that a row of the cache has room for.
      itemsize: bytes of a parameter and of a cached number.
      blocked: whether pairs of a prompt come in blocks, as programs work on them. Without, a query
        meets the keys that it sees, and no more: what attention's definition asks for.
      kernel: what computes a prompt's attention, where pairs come in blocks.
    """

    batch_size: int
    length: int | None
    max_length: int
    itemsize: int
    blocked: bool = True
    kernel: Kernel = XLA


def predict(config: LlamaConfig, mask: SinkMask, sizes: Sizes) -> dict[str, Cost]:
    """The cost of one executable, by `ROWS`.

    Raises:
      InputError: for a mask of another shape.
    """
    mask.check(config)
    mask = mask.within(config.layer_windows)
    costs: dict[str, Cost] = collections.defaultdict(Cost)
    copied = {(p.layer, p.head) for paths in mask.heads for p in paths if isinstance(p, Copy)}
    for layer, paths in enumerate(mask.heads):
        heads = [
            _Head(path, _span(mask, path), (layer, number) in copied)
            for number, path in enumerate(paths)
        ]
        for row, cost in _layer(config, heads, sizes):
            costs[row] += cost
    costs["rest"] += _rest(config, mask, sizes)
    return {row: costs[row] for row in ROWS}


def total(costs: Mapping[str, Cost]) -> Cost:
    """The sum over all rows."""
    return sum(costs.values(), Cost())


@dataclasses.dataclass(frozen=True)
class _Head:
    path: Path
    span: Full | Window | None  # what it attends over; None for `sink`
    is_copied: bool

    @property
    def has_queries(self) -> bool:
        return isinstance(self.path, Full | Window)

    @property
    def is_kept(self) -> bool:
        """True where its pattern is an array: it is copied, or a copy."""
        return self.is_copied or not self.has_queries


def _span(mask: SinkMask, path: Path) -> Full | Window | None:
    if isinstance(path, Copy):
        return mask.heads[path.layer][path.head]
    return None if isinstance(path, Sink) else path


def _layer(config: LlamaConfig, heads: Sequence[_Head], sizes: Sizes) -> Iterator[tuple[str, Cost]]:
    """The costs of one layer's attention, in pieces, each with its row."""
    B, T = sizes.batch_size, sizes.length or 1
    D, H = config.embed_dim, config.head_dim
    projection = Cost(2 * B * T * D * H, D * H * sizes.itemsize)
    biased = projection + Cost(parameters=config.attention_bias * H * sizes.itemsize)
    has_joint_norm = config.joint_qk_norm and any(head.has_queries for head in heads)
    for head in heads:
        if has_joint_norm and not head.has_queries:
            yield "rest", biased
        if head.span is None:
            continue
        pairs = _pairs(head, sizes)
        is_sum = sizes.length is not None or pairs > 1  # of one slot no product is left
        sums_weights = sizes.blocked and not head.is_kept and isinstance(sizes.kernel, Xla)
        columns = H + (sizes.length is not None and sums_weights)
        products = Cost(is_sum * 2 * B * pairs * columns)
        if head.has_queries:
            products += biased + Cost(2 * B * pairs * H)
        yield head.path.kind, projection + products
    group = config.num_heads // config.num_kv_heads
    for start in range(0, len(heads), group):
        members = heads[start : start + group]
        if has_joint_norm and not any(h.has_queries for h in members):
            yield "rest", biased
        for reads in ([h for h in members if h.has_queries], [h for h in members if h.span]):
            if reads:
                cached = Cost(cache=B * _slots((h.span for h in reads), sizes) * H * sizes.itemsize)
                kinds = {head.path.kind for head in reads}
                yield next(row for row in ROWS if row in kinds), biased + cached
        if sizes.length is not None:
            yield "sink", _sink_group(members, biased, config, sizes)
    yield "sink", _sink_bias([head.path for head in heads], config, sizes)


def _sink_group(members: Sequence[_Head], biased: Cost, config: LlamaConfig, sizes: Sizes) -> Cost:
    """The cost of a group's `sink` heads in prefill: v_0 and its way through o."""
    fills = {head.path.fill for head in members if isinstance(head.path, Sink)}
    D, H = config.embed_dim, config.head_dim
    term = Cost(2 * sizes.batch_size * D * H, D * H * sizes.itemsize)
    terms = [term] * (("first" in fills) + bool(fills - {"first"}))
    if fills and all(head.span is None for head in members):
        terms.append(Cost(term.flops, biased.parameters))
    return sum(terms, Cost())


def _sink_bias(paths: Sequence[Path], config: LlamaConfig, sizes: Sizes) -> Cost:
    """The sum added at every later position: kept in the cache, its constant part a parameter."""
    size = config.embed_dim * sizes.itemsize
    has_mean = Sink("mean") in paths
    return Cost(
        parameters=size if has_mean and sizes.length is not None else 0,
        cache=sizes.batch_size * size if has_mean or Sink("first") in paths else 0,
    )


def _rest(config: LlamaConfig, mask: SinkMask, sizes: Sizes) -> Cost:
    """Embedding, norms, feed-forward and output head, and the cache's own count of tokens.

    A decode step has no norm of attention where every head of a layer is `sink`, and no program has
    those of queries and keys where no head of a layer has any.
    """
    B, T = sizes.batch_size, sizes.length or 1
    D, F, V, L = config.embed_dim, config.mlp_dim, config.vocab_size, config.num_layers
    biases = L * (bool(config.output_bias) * D + config.mlp_bias * (2 * F + D))
    tables = V * D * (1 if config.tie_embeddings else 2)
    gone = sum(all(isinstance(path, Sink) for path in paths) for paths in mask.heads)
    inner = 2 * L - (gone if sizes.length is None else 0)
    norms = config.inner_norms * inner + config.outer_norms * 2 * L + 1
    turned = sum(any(isinstance(p, Full | Window) for p in paths) for paths in mask.heads)
    numbers = tables + L * 3 * D * F + norms * D + biases
    normed = config.num_heads + config.num_kv_heads if config.joint_qk_norm else 2
    numbers += config.qk_norm * turned * normed * config.head_dim
    return Cost(
        flops=2 * B * T * L * 3 * D * F + 2 * B * D * V,
        parameters=numbers * sizes.itemsize,
        cache=4 * B,
    )


def needed_pairs(span: Full | Window, length: int) -> int:
    """Pairs of a query and a key that it sees, of T tokens."""
    if isinstance(span, Full):
        return _last(length, length)

    def first(recent: int) -> int:
        """Pairs with first tokens that are not among so many recent ones."""
        beyond = max(length - recent, 0)
        return _last(span.sinks, beyond)

    unseen = 0 if span.within is None else first(span.within)
    return _last(span.recent, length) + first(span.recent) - unseen


def _last(window: int, length: int) -> int:
    """Pairs of each of T queries and the last so many keys up to its own."""
    seen = min(window, length)
    return seen * (seen + 1) // 2 + (length - seen) * seen


def _pairs(head: _Head, sizes: Sizes) -> int:
    """P of one head and row."""
    span = head.span
    if sizes.length is None:
        return _slots([span], sizes)
    if not sizes.blocked:
        return needed_pairs(span, sizes.length)
    if isinstance(sizes.kernel, Blocked) and not head.is_kept:
        return sizes.kernel.pairs(span, sizes.length)
    span = reach(span, sizes.length)
    kernel = sizes.kernel
    if isinstance(kernel, Xla) and kernel.streamed(span, sizes.length) and not head.is_kept:
        return _streamed_pairs(span, sizes.length)
    if isinstance(span, Window):
        return _window_pairs(span, sizes.length)
    return _full_pairs(sizes.length)


def _slots(spans: Iterable[Full | Window], sizes: Sizes) -> int:
    """Slots that hold what heads on all these spans see."""
    spans = list(spans)
    if Full() in spans:
        return sizes.max_length
    slots = max(span.sinks for span in spans) + max(span.recent for span in spans)
    return min(slots, sizes.max_length)


def _full_pairs(length: int) -> int:
    """Every block of a span with all keys up to the span's end; what is left over with all."""
    blocks = length // full.BLOCK
    a_span = max(1, math.ceil(blocks / full.MAX_SPANS)) * full.BLOCK
    edges = [*range(0, blocks * full.BLOCK, a_span), blocks * full.BLOCK, length]
    return sum((stop - start) * stop for start, stop in itertools.pairwise(edges))


def _streamed_pairs(span: Full | Window, length: int) -> int:
    """Every whole block of keys before a query's own; of its own, keys up to its strip's end.

    Of a window the blocks that all of a block's queries see, and for each block of queries that do
    not see all, the first keys and as many of its oldest ones as any such block has.
    """
    pairs = 0
    for start, stop, block in block_runs(length, stream.STREAMED):
        own = sum(
            (min(strip + stream.STRIP, block) - strip) * min(strip + stream.STRIP, block)
            for strip in range(0, block, stream.STRIP)
        )
        begins = range(start, stop, block)
        pairs += len(begins) * own
        ends, oldest = stream.edges(begins, block, span)
        pairs += block * sum(begin - ends.get(begin, 0) for begin in begins)
        pairs += block * len(ends) * (oldest + (span.sinks if isinstance(span, Window) else 0))
    return pairs


def _window_pairs(span: Window, length: int) -> int:
    pairs = 0
    for start in range(0, length, window.BLOCK):
        block = min(window.BLOCK, length - start)
        pairs += block * (span.sinks + min(span.recent - 1 + block, length))
    return pairs
