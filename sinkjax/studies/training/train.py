"""Distillation: parameters trained so that a changed model says what the baseline says.

The loss is the KL of each token's prediction to the baseline's own, on text, with what a price
adds. Gradients go back a layer at a time, through what is compiled once for all layers alike, and
logits are there for a block of positions at a time.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec

from sinkjax.checkpoint.orbax import check_files, open_arrays, read_part
from sinkjax.distributed import first, to_host
from sinkjax.errors import InputError, Problem, first_line
from sinkjax.files import read_file, replace_file
from sinkjax.instruments.token_losses import OutputHead, by_blocks, residuals
from sinkjax.models.decoder import Llama
from sinkjax.models.finite import check_finite, not_finite
from sinkjax.models.sharding import even_rows, lay_rows, mesh_of, place, place_parts, row_shards
from sinkjax.studies.results import arrays_digest
from sinkjax.studies.settings import MOST_SEED, above_zero, at_least

Parameters = Any
"""A pytree of arrays."""

_DIGEST = "state.sha256"  # of a checkpoint, in its folder; those of earlier versions have none
_ADVICE = "delete its checkpoint, and the same command goes on without it"
_ORDER = 8  # tells these draws from others of the same seed


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How to train: settings of `TrainingStudy`.

    The learning rate rises linearly over `warmup_share` of the steps, and then falls with a cosine
    to nothing. The seed decides the order of excerpts.
    """

    steps: int
    learning_rate: float
    rows: int = 1
    warmup_share: float = 0.1
    save_every: int = 10
    seed: int = 0

    def problems(self) -> Iterator[Problem]:
        """What is out of its range."""
        yield from at_least(self, steps=1, rows=1, save_every=1)
        yield from at_least(self, most=MOST_SEED, seed=0)
        yield from above_zero(self, learning_rate="a rate")
        if not 0 <= self.warmup_share <= 1:
            text = "give a share of the steps, from 0 to 1"
            yield Problem("warmup_share", self.warmup_share, text)

    def describe(self) -> dict[str, Any]:
        """Its JSON values, by the names that they have in records."""
        fields = dataclasses.asdict(self)
        return {("warmup" if name == "warmup_share" else name): fields[name] for name in fields}


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """What came of training.

    Attributes:
      parameters: after the last step.
      history: by name, float32 [steps]: `kl`, in nats a token, `price`, and `loss`, their sum, each
        before the step that it led to.
    """

    parameters: Parameters
    history: Mapping[str, np.ndarray]


def distil(
    baseline: Llama,
    forward: Callable[[Parameters, jax.Array], jax.Array],
    start: Parameters,
    excerpts: np.ndarray,
    settings: TrainSettings,
    folder: pathlib.Path,
    *,
    weights: np.ndarray | None = None,
    price: Callable[[Parameters], jax.Array] = lambda parameters: jnp.float32(0),
    on_step: Callable[[int], None] = lambda tokens: None,
) -> Trained:
    """Trains, from where an earlier call with the same arguments was stopped.

    Args:
      baseline: what is to be kept; its head is used for both.
      forward: from parameters and tokens int [B, T] to the residual stream after the last layer,
        [B, T, D].
      start: parameters, float32.
      excerpts: int32 [W, T], T at least 2. All of them are used before any is used again.
      folder: for checkpoints, by Orbax; of this training alone. All processes have to see it.
      weights: float32 [W, T - 1], how much the KL of each position from the second on counts in
        its excerpt's loss; None for their mean.
      price: what the parameters cost, a number that is added to the loss.
      on_step: called after each step with its tokens, and for those that had been done before.

    Raises:
      InputError: for settings out of their range, or a loss that is not finite.
    """
    if problems := list(settings.problems()):
        raise InputError(*problems)
    head, optimizer = OutputHead(baseline), _optimizer(settings)
    history = np.full((settings.steps, 2), np.nan, np.float32)
    state = _laid(baseline, {"parameters": start, "optimizer": optimizer.init(start)})
    state["history"] = history
    update = jax.jit(functools.partial(_update, optimizer))
    value_and_grad = jax.jit(jax.value_and_grad(price))
    count, length = excerpts.shape
    rows = min(settings.rows, count)
    size = rows * length
    # Filled up to as many on each device with what counts nothing; a single one lies on all.
    filled = even_rows(rows, rows, row_shards(baseline)) if rows > 1 else 1
    counts = np.where(np.arange(filled) < rows, np.float32(filled / rows), np.float32(0))
    if weights is None:
        weights = np.full((count, length - 1), 1 / (length - 1), np.float32)
    check_files(folder, _ADVICE)
    options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
    try:
        manager = ocp.CheckpointManager(folder.absolute(), options=options)
        done = manager.latest_step() or 0
    except RecursionError as error:  # of JSON of Orbax's own
        raise _damaged(folder, error) from error
    with manager as checkpoints:
        if done:
            digest = folder / str(done) / _DIGEST
            try:
                state = _restored(folder / str(done) / "default", state)
                if digest.is_file() and read_file(digest) != _digest_of(state):
                    raise ValueError("its numbers are not those that were written")
            except InputError:
                raise
            except (OSError, ValueError) as error:
                raise _damaged(folder / str(done), error) from error
            state["history"] = np.array(state["history"])
            on_step(done * size)
        for step in range(done, settings.steps):
            chosen = np.resize(_rows_of_step(step, count, settings), filled)
            tokens = lay_rows(baseline, excerpts[chosen])
            counted = lay_rows(baseline, counts[:, None] * weights[chosen])
            target = residuals(baseline, tokens)[:, 1:]
            changed, back = jax.vjp(lambda p, t=tokens: forward(p, t)[:, 1:], state["parameters"])
            kl, gradient = mean_divergence(head, target, changed, counted)
            paid, of_price = value_and_grad(state["parameters"])
            state["history"][step] = to_host((kl, paid))
            if not np.isfinite(state["history"][step]).all():
                own = mean_divergence(head, target, target, counted)[0]
                check_finite("the baseline's logits", own)
                if step == 0:
                    raise not_finite("logits, or what is added to the loss,")
                text = f"the loss is not finite at step {step}: give a lower rate"
                raise InputError(Problem("learning_rate", settings.learning_rate, text))
            (gradient,) = back(gradient)
            state["parameters"], state["optimizer"] = update(
                jax.tree.map(jnp.add, gradient, of_price), state["optimizer"], state["parameters"]
            )
            on_step(size)
            if (step + 1) % settings.save_every == 0 or step + 1 == settings.steps:
                checkpoints.save(step + 1, args=ocp.args.StandardSave(state))
                digest, content = folder / str(step + 1) / _DIGEST, _digest_of(state)
                first(functools.partial(replace_file, digest, content))
        kl, paid = state["history"].T
    return Trained(state["parameters"], {"kl": kl, "price": paid, "loss": kl + paid})


def _restored(folder: pathlib.Path, state: Any) -> Any:
    """The state that Orbax wrote to a folder, laid as this one is.

    Not read by Orbax: where it refuses a folder it leaves tasks unfinished, and asyncio says so.

    Raises:
      InputError: listing arrays that are missing, unknown, of another shape, or cannot be opened.
      ValueError: for one that is of another dtype, or cannot be read.
    """
    leaves, structure = jax.tree.flatten_with_path(state)
    named = {jax.tree_util.keystr(path, simple=True, separator="."): of for path, of in leaves}
    stored = open_arrays(folder, {name: of.shape for name, of in named.items()}, _ADVICE)

    def restored(name: str) -> jax.Array:
        its, of = stored[name], named[name]
        if its.dtype.numpy_dtype != of.dtype:
            raise ValueError(f"{name} is {its.dtype.name}, not {of.dtype.name}")
        sharding = getattr(of, "sharding", None)
        return place_parts(functools.partial(read_part, its), of.shape, sharding)

    return jax.tree.unflatten(structure, map(restored, named))


def _damaged(path: pathlib.Path, error: Exception) -> InputError:
    return InputError(
        f"{path} is damaged ({first_line(error)}); delete it, and the same command goes on from "
        "the checkpoint before it, or from the beginning"
    )


def _digest_of(state: Any) -> bytes:
    """The sha256 of all numbers of a state: Orbax keeps none."""
    return arrays_digest("", dict(enumerate(jax.tree.leaves(to_host(state)))))


def _laid(baseline: Llama, state: Any) -> Any:
    """What does not lie over the baseline's mesh yet, whole on each of its devices.

    So that a checkpoint is restored there, and not to the default device.
    """
    mesh = mesh_of(baseline)
    if mesh is None:
        return state
    everywhere = NamedSharding(mesh, PartitionSpec())

    def laid(array: jax.Array) -> jax.Array:
        is_there = isinstance(array.sharding, NamedSharding)
        return array if is_there else place(np.asarray(array), everywhere)

    return jax.tree.map(laid, state)


@jax.jit
def mean_divergence(
    head: OutputHead, target: jax.Array, changed: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The KL to the baseline's predictions, its mean over excerpts, and its gradient.

    Args:
      head: the baseline's, which makes predictions of both.
      target, changed: [B, P, D], residual streams after the last layer, of the baseline and of
        another model.
      weights: float32 [B, P], of each position's KL in its excerpt's.

    Returns:
      a float32 number, and its derivative by `changed`, [B, P, D].
    """

    def block(
        target: jax.Array, changed: jax.Array, weights: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        def divergences(changed: jax.Array) -> jax.Array:
            both = (jax.nn.log_softmax(head.logits(x[None])[0]) for x in (changed, target))
            return optax.losses.kl_divergence_with_log_targets(*both)

        kl, back = jax.vjp(divergences, changed)
        return kl, back(weights.astype(kl.dtype))[0]

    kl, gradient = by_blocks(block, target, changed, weights, shards=head.row_shards)
    return jnp.sum(kl * weights) / len(kl), gradient / len(kl)


def _optimizer(settings: TrainSettings) -> optax.GradientTransformation:
    warmup = round(settings.warmup_share * settings.steps)
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup else settings.learning_rate,
        peak_value=settings.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(settings.steps, warmup + 1),
    )
    return optax.adam(schedule)


def _update(
    optimizer: optax.GradientTransformation, gradient: Parameters, state: Any, parameters: Any
) -> tuple[Parameters, Any]:
    with jax.numpy_dtype_promotion("standard"):  # which optax's Adam counts on
        updates, state = optimizer.update(gradient, state, parameters)
    return optax.apply_updates(parameters, updates), state


def _rows_of_step(step: int, count: int, settings: TrainSettings) -> np.ndarray:
    """Which excerpts a step sees: every one once before any is seen again."""
    rows = min(settings.rows, count)
    a_round = count // rows
    rng = np.random.default_rng((_ORDER, settings.seed, step // a_round))
    start = step % a_round * rows
    return rng.permutation(count)[start : start + rows]
