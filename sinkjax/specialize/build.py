"""Makes the specialized model of a model and a mask."""

import functools
import logging
from collections.abc import Hashable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sinkjax.distributed import outside_meshes
from sinkjax.errors import InputError, check_array, check_kind
from sinkjax.masks.file import SavedMask
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Sink
from sinkjax.models.decoder import Attention, Layer, Llama, check_model
from sinkjax.models.digest import model_digest
from sinkjax.models.parts import RMSNorm, unnormed
from sinkjax.models.rules import AS_DIVIDED, BY_CHIP, BY_SUB, heads_axis
from sinkjax.models.sharding import is_explicit, mesh_of, on_devices, shard, with_axes_of
from sinkjax.specialize.attention import SpecializedAttention
from sinkjax.specialize.plan import HeadOrder, LayerPlan, plan_layers

_logger = logging.getLogger(__name__)

M = TypeVar("M", bound=nnx.Module)


class SpecializedLlama(Llama):
    """A Llama whose heads take the paths of a mask; called, prefilled and decoded as a `Llama`.

    Attributes:
      mask: static.
    """

    def __init__(self, model: Llama, mask: SinkMask, layers: Sequence[Layer]):
        """Takes everything but the layers from `model`, whose arrays it shares."""
        self.mask = mask
        self.config = model.config
        self.embedding = _shared(model.embedding)
        self.layers = nnx.List(layers)
        self.norm = _shared(model.norm)
        self.head = _shared(model.head)

    @property
    def cache_kind(self) -> Hashable:
        """What tells its caches from others; the baseline's of a mask without a masked head."""
        kind = super().cache_kind
        return (kind, self.mask.digest) if self.mask.masked.any() else kind


@outside_meshes()
def specialize(
    model: Llama, mask: SinkMask | SavedMask, *, fills: jax.Array | None = None
) -> SpecializedLlama:
    """Makes a model in which every head takes its path, without the work that the mask removes.

    Weights that the mask leaves alone are shared with `model`, not copied; a slice or a new order
    of heads is a new array, laid over the model's mesh by the same rules. With every head `full` it
    is the baseline's own program.

    Args:
      model: the baseline. Its parameters may be abstract (`jax.ShapeDtypeStruct`), and then so are
        the result's.
      mask: static, for a model of this shape; or a saved one with its fills, for the very model
        that its provenance names. Telling takes a pass over the parameters, about a second a
        gigabyte; where they are abstract, or the file names no model, only the shape is held
        against it.
      fills: float32 [L, N, H], mean outputs of heads before `o_proj` over t >= 1; read where the
        mask says `sink(mean)`. A saved mask brings its own.

    Raises:
      InputError: for a mask of another shape or another model, or without fills where the mask
        needs them.
      ValueError: for fills of another shape. TypeError: for a model that is specialized already.
    """
    if isinstance(model, SpecializedLlama):
        raise TypeError("the model is specialized already: specialize the baseline")
    check_model(model)
    needed = "a SinkMask, such as SinkMask.from_text reads, or what load_mask gives,"
    check_kind("mask", mask, SinkMask | SavedMask, needed)
    leaves = jax.tree.leaves(nnx.state(model))
    abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    if any(any(jax.typeof(x).sharding.spec) for x in leaves if isinstance(x, jax.core.Tracer)):
        raise InputError(
            "its weights are divided over explicit axes, and this is inside of jax.jit: specialize "
            "the model outside, and give the result to what is compiled"
        )
    mask.check(model.config)
    if isinstance(mask, SavedMask):
        if not abstract:
            _check_made_for(model, mask)
        mask, fills = mask.mask, mask.fills if fills is None else fills
    fills = None if fills is None else check_array("fills", fills, jax.Array)
    _check_fills(model, mask, fills)
    mesh = mesh_of(model)
    explicit = mesh is not None and is_explicit(mesh)
    model = jax.tree.map(on_devices, model) if explicit else model
    over = {} if mesh is None else mesh.shape
    chips, sub = over.get("model", 1), over.get("sub", 1)
    build = functools.partial(_build, mask=mask, fills=fills, chips=chips, sub=sub)
    fast = jax.eval_shape(build, model) if abstract else build(model)
    fast = fast if mesh is None else shard(fast, mesh)
    return with_axes_of(fast, mesh) if explicit else fast


def _check_made_for(model: Llama, saved: SavedMask) -> None:
    wanted = saved.provenance.model_digest
    if wanted is not None and wanted != (digest := model_digest(model)):
        raise InputError(
            f"the mask was made for {saved.provenance.model or 'a model'} of digest {wanted}, and "
            f"this model's is {digest}: load that one, in the dtype that the mask was made in, or "
            "give the saved mask's `mask` and `fills` by themselves to use it all the same"
        )


def _check_fills(model: Llama, mask: SinkMask, fills: jax.Array | None) -> None:
    config = model.config
    shape = (config.num_layers, config.num_heads, config.head_dim)
    if fills is not None and np.shape(fills) != shape:
        raise ValueError(f"fills have shape {np.shape(fills)}; [L, N, H] is {shape}")
    if fills is None and mask.on(Sink("mean")).any():
        raise InputError(
            "the mask has sink(mean) heads, which need calibrated means: pass fills, float32 "
            f"[L, N, H] = {shape}, or choose the fill `first` or `zero`"
        )


def _build(
    model: Llama, mask: SinkMask, fills: jax.Array | None, chips: int, sub: int
) -> SpecializedLlama:
    config = model.config
    group = config.num_heads // config.num_kv_heads
    plans = plan_layers(mask, group, config.layer_windows, config.joint_qk_norm, chips, sub)
    for axis, size, batch, advice in (
        ("model", chips, BY_CHIP, ": balance it over the chips to divide heads"),
        ("sub", sub, BY_SUB, ""),
    ):
        uneven = sum(planned is not None and planned[0].batch == batch for planned in plans)
        if uneven:
            _logger.warning(
                "the mask leaves the heads of %d of %d layers uneven over %d chips along %s, which "
                "hold attention's weights there alike and divide rows where their number allows%s",
                uneven,
                config.num_layers,
                size,
                axis,
                advice,
            )
    layers = []
    for index, (layer, planned) in enumerate(zip(model.layers, plans, strict=True)):
        layer = _shared(layer)
        if planned is not None:
            means = None if fills is None else jnp.asarray(fills[index], jnp.float32)
            norm = None
            if not planned[0].blocks:  # what is left reads the first token alone
                norm, layer.attention_norm = layer.attention_norm, nnx.static(unnormed)
            layer.attention = _specialized(layer.attention, norm, *planned, means)
        layers.append(layer)
    return SpecializedLlama(model, mask, layers)


def _specialized(
    attention: Attention,
    norm: RMSNorm | None,
    plan: LayerPlan,
    order: HeadOrder,
    means: jax.Array | None,
) -> SpecializedAttention:
    """One layer's attention. means: float32 [N, H]."""
    new = {
        "q": _heads(attention.q, order.q),
        "q_bias": _heads(attention.q_bias, order.q),
        "o": _heads(attention.o, order.o, axis=1),
        "o_bias": attention.o_bias,
        "first_o": _summed(attention.o, order.first),
        "other_o": _summed(attention.o, order.other),
        "mean_bias": _mean_bias(attention.o, order.mean, means),
    }
    for name, groups in (("k", order.k), ("v", order.v), ("sink_v", order.sink_v)):
        source = name.removeprefix("sink_")
        new[name] = _heads(getattr(attention, source), groups)
        new[f"{name}_bias"] = _heads(getattr(attention, f"{source}_bias"), groups)
    new = {name: _along(parameter, plan.batch) for name, parameter in new.items()}
    turn = _shared(attention.turn)
    for of_heads, heads in ((turn.q_norm, order.q), (turn.k_norm, order.k)):
        if of_heads is not None and of_heads.scale.ndim > 1 and heads:
            of_heads.scale = _along(_heads(of_heads.scale, heads), plan.batch)
    return SpecializedAttention(plan, new, turn, attention.score_cap, norm)


def _heads(parameter: nnx.Param | None, heads: Sequence[int], axis: int = 0) -> nnx.Param | None:
    """These heads of a parameter, the parameter itself where they are all of it as it lies."""
    if parameter is None or not heads:
        return None
    if list(heads) == list(range(parameter.shape[axis])):
        return parameter
    return parameter.replace(jnp.take(parameter[...], np.array(heads), axis=axis))


def _along(parameter: nnx.Param | None, batch: str) -> nnx.Param | None:
    """A parameter with its heads along the axis that they have in attention of such rows."""
    if parameter is None or batch == AS_DIVIDED:
        return parameter
    axes = tuple(heads_axis(name, batch) for name in parameter.out_sharding)
    return nnx.Param(parameter[...], out_sharding=axes, eager_sharding=False)


def _summed(o: nnx.Param, groups: Sequence[Sequence[int]]) -> nnx.Param | None:
    """o [D, N, H] summed over the heads of each group: [D, groups, H]."""
    if not groups:
        return None
    wide = o[...].astype(jnp.float32)
    sums = jnp.stack([wide[:, np.array(heads)].sum(axis=1) for heads in groups], axis=1)
    axes = (o.out_sharding[0], "kv_heads", o.out_sharding[2])
    return nnx.Param(sums.astype(o.dtype), out_sharding=axes, eager_sharding=False)


def _mean_bias(o: nnx.Param, heads: Sequence[int], means: jax.Array | None) -> nnx.Param | None:
    """Σ_n o_n m_n: o [D, N, H] and means float32 [N, H] -> [D]."""
    if not heads:
        return None
    index = np.array(heads)
    wide = o[...][:, index].astype(jnp.float32)
    bias = jnp.einsum("nh,dnh->d", means[index], wide, precision="highest").astype(o.dtype)
    return nnx.Param(bias, out_sharding=o.out_sharding[:1], eager_sharding=False)


def _shared(module: M) -> M:
    """A module of its own over the same arrays, so that updating one leaves the other alone."""
    return None if module is None else nnx.clone(module)
