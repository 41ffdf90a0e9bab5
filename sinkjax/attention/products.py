"""How a decode step's and a prompt's products are written, so that XLA runs them fast.

Every weight lies as [out..., in...]: what one output is made of lies together. `Products` writes a
product as one `dot_general`, which is right anywhere: in a caller's own `jax.jit`, over a mesh, on
an accelerator. `CpuProducts` writes the same numbers for XLA's CPU compiler and is fast only under
`sinkjax.programs.options.CPU_OPTIONS`; without them it is up to a hundred times slower. So it is
never a default: `sinkjax.compile` passes it where it passes those options.

docs/performance.md has the rates that the forms were chosen by, and those of forms that lost.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, DTypeLike, Float, Float32

from sinkjax.attention.blocks import weighted_sums


@dataclasses.dataclass(frozen=True)
class Products:
    """One `dot_general` a product."""

    def project(
        self,
        x: Float[Array, "B T *inputs"],
        *weights: Float[Array, "..."],
        dtype: DTypeLike | None = None,
    ) -> tuple[Float[Array, "B T ..."], ...]:
        """Returns [B, T, out...] of x [B, T, in...] by each of several weights [out..., in...].

        `dtype` is that of the results and of their sums; None for x's.
        """
        return tuple(_dot(x, weight, dtype) for weight in weights)

    def slot_scores(
        self, q: Float[Array, "B K G H"], keys: Float[Array, "*BK S H"]
    ) -> Float32[Array, "B K G S"]:
        """Returns q . k of every slot of a store (`sinkjax.attention.cache`)."""
        rows = q.reshape(*keys.shape[:-2], *q.shape[-2:])
        # With the keys on the left: on the right, XLA on a CPU copies them in another order first.
        product = jnp.einsum("...sh,...gh->...sg", keys, rows, preferred_element_type=_WIDE)
        return product.swapaxes(-1, -2).reshape(*q.shape[:-1], keys.shape[-2])

    def sum_slots(
        self, weights: Float32[Array, "B K G S"], values: Float[Array, "*BK S H"]
    ) -> Float[Array, "B K G H"]:
        """Returns Σ_s weights_s v_s over all slots of a store, in v's dtype."""
        rows = weights.astype(values.dtype).reshape(*values.shape[:-2], *weights.shape[-2:])
        sums = jnp.einsum("...gs,...sh->...gh", rows, values, preferred_element_type=_WIDE)
        return sums.astype(values.dtype).reshape(*weights.shape[:-1], values.shape[-1])

    def unnormalized(
        self, scores: Float32[Array, "*rows S"], visible: Bool[Array, "... S"]
    ) -> Float32[Array, "*rows S"]:
        """Returns exp(score - the row's largest) where visible, 0 elsewhere.

        `visible` broadcasts to the axes of `scores`.
        """
        scores = jnp.where(visible, scores, -jnp.inf)
        return jnp.exp(scores - scores.max(axis=-1, keepdims=True))

    def largest(self, scores: Float32[Array, "*rows S"]) -> Float32[Array, "*rows 1"]:
        """Returns the row's largest score."""
        return scores.max(axis=-1, keepdims=True)

    def counted(self, values: Float[Array, "B K S H"]) -> Float[Array, "B K S M"]:
        """Returns values as `sum_counted` takes them: with a column of ones."""
        return jnp.concatenate([values, jnp.ones_like(values[..., :1])], axis=-1)

    def sum_counted(
        self, weights: Float32[Array, "B K G T S"], values: Float[Array, "B K S M"]
    ) -> Float32[Array, "B K G T columns"]:
        """Returns Σ_s weights_ts values_s, of `counted` values, and last Σ_s weights_ts.

        One product gives both. Reading the weights themselves would make XLA keep or compute them
        twice: at 1,024 tokens that doubles a layer's attention time on a CPU.
        """
        return weighted_sums(weights, values)

    def settle(self, x: Array) -> Array:
        """Returns x, as an array that is computed once; here XLA decides what that is good for."""
        return x


PLAIN = Products()


@dataclasses.dataclass(frozen=True)
class CpuProducts(Products):
    """Few rows by reading each weight once, in order, on all cores; many as one `dot_general`."""

    def project(
        self,
        x: Float[Array, "B T *inputs"],
        *weights: Float[Array, "..."],
        dtype: DTypeLike | None = None,
    ) -> tuple[Float[Array, "B T ..."], ...]:
        dtype = x.dtype if dtype is None else dtype
        lead, inputs = x.shape[:2], x.shape[2:]
        rows = self.settle(x.reshape(lead[0] * lead[1], -1))
        flat = [weight.reshape(-1, rows.shape[1]) for weight in weights]
        with jax.named_scope("dot_general"):  # what the account of a program counts as a product
            products = self._products(rows, flat)
        return tuple(
            self.settle(product.astype(dtype)).reshape(
                *lead, *weight.shape[: weight.ndim - len(inputs)]
            )
            for product, weight in zip(products, weights, strict=True)
        )

    def _products(
        self, x: Float[Array, "R D"], weights: list[Float[Array, "_ D"]]
    ) -> list[Float32[Array, "R _"]]:
        rows, inputs = x.shape
        if rows == 1 and inputs <= _ROW_INPUTS:
            return _reduced_row(x, weights)
        if 1 < rows <= _FEW_ROWS and inputs <= _PAIR_INPUTS:
            return [_reduced_pairs(x, weight) for weight in weights]
        if 1 < rows <= _LEFT_ROWS:
            return [self._left(x, weight) for weight in weights]
        return [jnp.einsum("rd,md->rm", x, w, preferred_element_type=_WIDE) for w in weights]

    def _left(self, x: Float[Array, "R D"], weight: Float[Array, "M D"]) -> Float32[Array, "R M"]:
        """Puts the weight on the left, where the library reads it as it lies.

        Rows of zeros are added where the library is faster with more: to an odd number of rows one,
        and up to the next multiple of sixteen, or else eight, where most of as many are there.
        """
        rows = x.shape[0]
        more = -rows % 8 if rows % 16 > 8 or rows % 8 > 4 else rows % 2
        x = jnp.pad(x, ((0, more), (0, 0)))
        product = jnp.einsum("md,rd->mr", weight, x, preferred_element_type=_WIDE)
        return self.settle(product)[:, :rows].T

    def slot_scores(
        self, q: Float[Array, "B K G H"], keys: Float[Array, "*BK S H"]
    ) -> Float32[Array, "B K G S"]:
        # One pass over the keys for all query heads of a group.
        rows = q.reshape(*keys.shape[:-2], *q.shape[-2:])
        with jax.named_scope("dot_general"):
            heads = _reduced(
                [_wide(keys) * _wide(rows[..., g, None, :]) for g in range(q.shape[2])]
            )
        scores = jnp.stack([self.settle(head) for head in heads], axis=-2)
        return scores.reshape(*q.shape[:-1], keys.shape[-2])

    def unnormalized(
        self, scores: Float32[Array, "*rows S"], visible: Bool[Array, "... S"]
    ) -> Float32[Array, "*rows S"]:
        """Masks each fold of a row by itself, so that masked scores are never written to memory."""

        def masked(start: int, stop: int) -> Array:
            return jnp.where(visible[..., start:stop], scores[..., start:stop], -jnp.inf)

        top = self._folded(masked, scores.shape[-1])
        return self.settle(jnp.exp(masked(0, scores.shape[-1]) - top))

    def largest(self, scores: Float32[Array, "*rows S"]) -> Float32[Array, "*rows 1"]:
        return self._folded(lambda start, stop: scores[..., start:stop], scores.shape[-1])

    def _folded(self, part: Callable[[int, int], Array], length: int) -> Array:
        """Returns the largest of every row, of which `part` gives the columns from one to another.

        A row is folded before its largest is found: XLA reduces a row number by number, since one
        might be NaN, but takes the larger of two arrays as many numbers at once as a core can.
        """
        width = _FOLD * max(1, -(-length // _FOLD**2))
        whole = length - length % width
        folds = [part(start, start + width) for start in range(0, whole, width)]
        rows = [functools.reduce(jnp.maximum, folds)] if folds else []
        rows += [part(whole, length)] if whole < length else []
        tops = [row.max(axis=-1, keepdims=True) for row in rows]
        return self.settle(functools.reduce(jnp.maximum, tops))

    def counted(self, values: Float[Array, "B K S H"]) -> Float[Array, "B K S M"]:
        """Returns the values as they are."""
        return values

    def sum_counted(
        self, weights: Float32[Array, "B K G T S"], values: Float[Array, "B K S M"]
    ) -> Float32[Array, "B K G T columns"]:
        """Sums weights apart: they are in memory, and 65 columns take a third longer than 64."""
        with jax.named_scope("dot_general"):
            totals = weights.sum(axis=-1, keepdims=True)
        return jnp.concatenate([weighted_sums(weights, values), totals], axis=-1)

    def settle(self, x: Array) -> Array:
        """Returns x behind a barrier, which the options keep until XLA has fused what it will.

        Without one, a reduction computes what feeds it again for every output, and a product that
        feeds a slower function is computed inside it, on one thread.
        """
        return jax.lax.optimization_barrier(x)


def add_bias(x: Float[Array, "B T ..."], bias: nnx.Param | None) -> Float[Array, "B T ..."]:
    """Adds a bias [...] to x [B, T, ...], where there is one."""
    return x if bias is None else x + bias[...][None, None]


_WIDE = jnp.float32
"""What sums are taken in, whatever the weights are."""
_FOLD = 64
"""Numbers, and folds of so many numbers, that a row is folded to at most."""
_ROW_INPUTS = 4096
"""The most of one row; beyond, a row of the weight no longer streams beside x."""
_FEW_ROWS = 8
"""Rows that multiplications and reductions still win at."""
_PAIR_INPUTS = 1024
"""The most of a pair of rows: eight rows of so many inputs fit a core's first cache."""

_LEFT_ROWS = 64
"""Rows up to which the library's time goes into packing the weight, unless it is on the left."""


def _dot(x: Array, weight: Array, dtype: DTypeLike | None) -> Array:
    """Returns x [B, T, in...] by a weight [out..., in...]: [B, T, out...]."""
    outputs = weight.shape[: weight.ndim - (x.ndim - 2)]
    rows = x.reshape(*x.shape[:2], -1)
    # Of more than two axes, XLA on a CPU would copy a weight in another order at every call.
    flat = weight.reshape(-1, rows.shape[2])
    product = jnp.einsum("bti,oi->bto", rows, flat, preferred_element_type=dtype)
    return product.reshape(*x.shape[:2], *outputs)


def _reduced_row(
    x: Float[Array, "1 D"], weights: list[Float[Array, "_ D"]]
) -> list[Float32[Array, "1 _"]]:
    """Multiplies by weights of one shape in one pass, which saves a start for each."""
    products = [x] * len(weights)
    for shape in dict.fromkeys(weight.shape for weight in weights):
        places = [place for place, weight in enumerate(weights) if weight.shape == shape]
        sums = _reduced([_wide(weights[place]) * _wide(x) for place in places])
        for place, product in zip(places, sums, strict=True):
            products[place] = product[None, :]
    return products


def _reduced_pairs(x: Float[Array, "R D"], weight: Float[Array, "M D"]) -> Float32[Array, "R M"]:
    """Multiplies two rows at each reading of a number; an odd row beside one of zeros."""
    rows = x.shape[0]
    x = jnp.pad(x, ((0, rows % 2), (0, 0)))
    weight = _wide(weight)[:, None, :]
    pair = _reduced([weight * _wide(x[start::2])[None] for start in range(2)])
    pair = [jax.lax.optimization_barrier(product) for product in pair]
    return jnp.stack(pair, axis=2).reshape(weight.shape[0], x.shape[0])[:, :rows].T


def _reduced(terms: list[Array]) -> list[Array]:
    """Returns sums over the last axis of arrays of one shape, in one pass over them."""
    zeros = [jnp.float32(0)] * len(terms)

    def add(sums: list[Array], terms: list[Array]) -> list[Array]:
        return [a + b for a, b in zip(sums, terms, strict=True)]

    return jax.lax.reduce(terms, zeros, add, (terms[0].ndim - 1,))


def _wide(x: Array) -> Array:
    return x.astype(_WIDE)
