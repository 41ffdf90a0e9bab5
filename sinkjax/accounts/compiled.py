"""Costs of compiled executables, by path, read from the executables themselves.

FLOPs come from the optimized HLO, by the `jax.named_scope` in which the model computed them;
parameters and cache from the executable's own arguments, where what XLA found dead is not listed.
What the heads of a layer do in one product, its projections, is shared out by heads: a product's
cost is linear in them. What the heads of a group share counts to its strongest path, as in
`sinkjax.accounts.formulas`.

A kernel is a custom call, of which the HLO has the shapes and the scope, and not the work. That is
counted from the blocks of queries and keys that its path leaves, and said apart.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping
from fractions import Fraction

from flax import nnx

from sinkjax.accounts.formulas import ROWS, Cost, needed_pairs
from sinkjax.attention.kernels import Blocked
from sinkjax.masks.paths import Full, Window
from sinkjax.programs.executable import Executable
from sinkjax.programs.generate import Program
from sinkjax.programs.hlo import Scopes
from sinkjax.specialize.plan import LayerPlan

_LAYER = re.compile(r"/layer_(\d+)/")
_PATHS = {*ROWS} - {"rest"}
_SCOPE = re.compile(rf"/attention/(?:.*/)?(qkv|[qkvo]|{'|'.join(_PATHS)})/")
_PARAMETER = re.compile(r"parameters\['layers\.(\d+)\.(?:layer\.)?attention\.(\w+)'\]")
_CACHE = re.compile(r"cache\.layers\[(\d+)\]\.(?:(?:keys|values)\[(\d+)\]|bias)")

Shares = Mapping[str, Fraction]


@dataclasses.dataclass(frozen=True)
class CompiledCosts:
    """One executable's costs.

    Attributes:
      rows: by `sinkjax.accounts.formulas.ROWS`; FLOPs are of matrix products.
      all_flops: FLOPs with those of elementwise functions and reductions, a kernel's apart.
      kernel_flops: the FLOPs of `rows` that are a kernel's, counted from its blocks.
      needed_flops: what these would be, did blocks hold no pair that the path hides.
      uncounted: custom calls whose FLOPs are not known; none, in a whole account.
    """

    rows: dict[str, Cost]
    all_flops: int
    kernel_flops: int
    needed_flops: int
    uncounted: tuple[str, ...]


def account(program: Program, executable: Executable) -> CompiledCosts:
    """Reads one executable of a program.

    A prefill executable leaves a cache and is given none: its cache is what `decode` is given.
    """
    layers = [_LayerShares.of(layer) for layer in program.structure.layers]
    module = executable.module
    sums: dict[str, Cost] = collections.defaultdict(Cost)

    def add(shares: Shares, **amounts: int) -> None:
        for row, share in shares.items():
            sums[row] += Cost(**{name: round(share * amount) for name, amount in amounts.items()})

    flops: dict[tuple[int, str] | None, int] = collections.Counter()
    for work in module.work:
        if work.is_matmul:
            flops[_place(work.scopes)] += work.flops
    length, kernel = program.length_of(executable), program.kernel_of(executable)
    kernel_flops = needed_flops = 0
    uncounted = set()
    for call in module.calls:
        path = kernel.read_path(call.scopes) if isinstance(kernel, Blocked) else None
        if path is None:
            uncounted.add(call.target)
            continue
        # Two products, of scores and of sums, take 2 H FLOPs a pair each. The last result of every
        # kernel is what its heads give: B, T, N and H are its axes in some order.
        a_pair = 2 * 2 * math.prod(call.shapes[-1]) // length * call.times
        amount = a_pair * kernel.pairs(path, length)
        flops[_place(call.scopes)] += amount
        kernel_flops += amount
        needed_flops += a_pair * needed_pairs(path, length)
    for place, amount in flops.items():
        add(_REST if place is None else layers[place[0]].products[place[1]], flops=amount)
    for argument in module.arguments:
        if argument.name.startswith("parameters["):
            name = _PARAMETER.fullmatch(argument.name)
            shares = layers[int(name[1])].parameters[name[2]] if name else _REST
            add(shares, parameters=argument.size)
    for argument in program.decode.module.arguments:
        if argument.name.startswith("cache."):
            name = _CACHE.fullmatch(argument.name)
            shares = layers[int(name[1])].stored(name[2]) if name else _REST
            add(shares, cache=argument.size)
    return CompiledCosts(
        rows={row: sums[row] for row in ROWS},
        all_flops=module.flops() + kernel_flops,
        kernel_flops=kernel_flops,
        needed_flops=needed_flops,
        uncounted=tuple(sorted(uncounted)),
    )


_REST: Shares = {"rest": Fraction(1)}


@dataclasses.dataclass(frozen=True)
class _LayerShares:
    """The rows that the work of one layer counts to, and its part in each."""

    products: Mapping[str, Shares]  # by scope
    parameters: Mapping[str, Shares]  # by name
    stores: tuple[Shares, ...]  # of each block, its keys' and its values'

    @classmethod
    def of(cls, layer: nnx.Module) -> "_LayerShares":
        attention = getattr(layer, "layer", layer).attention  # a run of layers has one structure
        plan = getattr(attention, "plan", None)
        return cls._baseline(attention.span) if plan is None else cls._planned(plan)

    @classmethod
    def _baseline(cls, span: Full | Window) -> "_LayerShares":
        full = {span.kind: Fraction(1)}
        always: Mapping[str, Shares] = collections.defaultdict(lambda: full, o_bias=_REST)
        return cls(always, always, (full,))

    @classmethod
    def _planned(cls, plan: LayerPlan) -> "_LayerShares":
        q, k, v, o = (collections.Counter() for _ in range(4))
        stores = []
        for block in plan.blocks:
            for part in block.parts:
                o[part.kind] += block.groups * part.heads
            for part in block.computed:
                q[part.kind] += block.groups * part.heads
            row = min((part.kind for part in block.parts), key=ROWS.index)
            if block.computed:
                k[row] += block.groups
            v[row] += block.groups
            stores.append({row: Fraction(1)})
        q += collections.Counter(rest=plan.idle[0])  # without a row where there are none
        k += collections.Counter(rest=plan.idle[1])
        by_name = dict(q=q, k=k, v=v, o=o)
        heads = {name: _shares(counts) for name, counts in by_name.items()}
        products = {"qkv": _shares(q + k + v), **heads}
        sink = {"sink": Fraction(1)}
        parameters = {
            **heads,
            **{f"{name}_bias": heads[name] for name in "qkv"},
            "o_bias": _REST,
            **dict.fromkeys(("sink_v", "sink_v_bias", "first_o", "other_o", "mean_bias"), sink),
        }
        paths = {row: {row: Fraction(1)} for row in _PATHS}
        return cls({**products, **paths}, parameters, tuple(stores))

    def stored(self, block: str | None) -> Shares:
        """The shares of an array of the layer's cache: of a block, or else the sinks' bias."""
        return {"sink": Fraction(1)} if block is None else self.stores[int(block)]


def _place(scopes: Scopes) -> tuple[int, str] | None:
    """The layer and the scope within its attention that an instruction came from.

    Where XLA forgot, of those around it: the latest layer's, and a path before a projection, since
    scores and sums have their path's own elementwise work on one side. A projection of which `q`,
    `k` or `v` alone is cut is that one's. What reads an earlier layer's path is a copy: nothing
    else does.
    """
    by_layer: dict[int, set[str]] = collections.defaultdict(set)
    for scope in scopes:
        layer = _LAYER.search(scope)
        if layer is not None and "/attention/" in scope:
            name = _SCOPE.search(scope)
            by_layer[int(layer[1])].add(name[1] if name else "")
    if not by_layer:
        return None
    latest = max(by_layer)
    names = by_layer.pop(latest)
    if any(earlier & _PATHS for earlier in by_layer.values()):
        return latest, "copy"
    if not names & _PATHS and ("qkv" in names or len(names & {"q", "k", "v"}) > 1):
        return latest, "qkv"
    return latest, max(names & _PATHS or names)


def _shares(counts: Mapping[str, int]) -> Shares:
    return {row: Fraction(count, sum(counts.values())) for row, count in counts.items()}
