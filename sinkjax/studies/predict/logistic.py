"""Logistic models of whether a head is a sink, from what is known before it is computed.

The logit of head n in layer l, for a prompt at a length, is a sum of terms, one a feature:

  head         a number of the head's own
  length       a slope of its own in log2 of the length
  first_token  a number of its own for each first token that several prompts begin with
  layer_0      a weight of its own for the score of every head of layer 0
  previous     a weight of its own for the score of every head of layer l - 1
  same_index   one weight, the same for all heads, for the score of layer 0's head n

and an intercept. Features are standardized over the examples that the model is fitted to, scores
then cut at five deviations; nothing of other examples enters it. The weights have a Gaussian prior,
so that the fit exists and is unique, and it is found by L-BFGS (optax).

Axes: R examples, L layers, N heads, U first tokens; layer 0 is not predicted.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""Weights of the prior that `fit_penalty` tries: 1 / variance of a standardized weight."""

_EQUATIONS = {
    "head": "r,ln->rln",
    "length": "r,ln->rln",
    "first_token": "ru,uln->rln",
    "layer_0": "rm,lnm->rln",
    "previous": "rlm,lnm->rln",
    "same_index": "rln,->rln",
}
_SEVERAL = 2  # prompts that begin with a token, for it to have a number of its own
_FARTHEST = 5.0  # deviations from the mean that a score counts for
_STEPS, _TOLERANCE = 500, 1e-5
_FOLDS = 4
_FOLDING = 3  # tells these draws from others of the same seed


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Prompts, each at one or more lengths: R examples.

    Attributes:
      scores: float32 [R, L, N], of every head, two layers or more.
      sinks: bool [R, L, N].
      lengths: int [R].
      first_tokens: int [R], their ids.
      prompts: int [R], equal for equal prompts.
    """

    scores: np.ndarray
    sinks: np.ndarray
    lengths: np.ndarray
    first_tokens: np.ndarray
    prompts: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def outcomes(self) -> np.ndarray:
        """What is predicted: bool [R, L - 1, N]."""
        return self.sinks[:, 1:]

    def where(self, chosen: np.ndarray) -> "Examples":
        """The examples at which bool [R] is true."""
        fields = dataclasses.fields(self)
        return Examples(**{field.name: getattr(self, field.name)[chosen] for field in fields})


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """A fitted model.

    Attributes:
      features: that it sees, of `_EQUATIONS`.
      penalty: weight of its prior.
      weights: by feature, and "intercept".
      first_tokens: int [U], those with numbers of their own, and -1.
      scaling: by feature, mean and deviation of what it is made from.
    """

    features: tuple[str, ...]
    penalty: float
    weights: Mapping[str, np.ndarray]
    first_tokens: np.ndarray
    scaling: Mapping[str, tuple[np.ndarray, np.ndarray]]

    def probabilities(self, examples: Examples) -> np.ndarray:
        """Returns the probability of being a sink, float64 [R, L - 1, N]."""
        inputs = _inputs(examples, self.features, self.first_tokens, self.scaling)
        logits = np.asarray(_logits(self.weights, inputs), np.float64)
        return np.exp(-np.logaddexp(0, -logits))


def fit(
    examples: Examples,
    features: Sequence[str],
    penalty: float,
    *,
    counted: np.ndarray | None = None,
) -> Fitted:
    """The most probable weights under their prior.

    Args:
      features: of `_EQUATIONS`.
      penalty: above 0.
      counted: bool [R], the examples to fit to: of the others nothing is used; None for all.
    """
    features = tuple(features)
    fitted_to = examples if counted is None else examples.where(counted)
    tokens = _common_tokens(fitted_to, size=len(np.unique(examples.first_tokens)))
    scaling = _scaling(fitted_to)
    # All examples, with weights, and not those alone that count: one shape is one compilation.
    counts = np.ones(len(examples)) if counted is None else counted
    weights = _fit(
        _inputs(examples, features, tokens, scaling),
        jnp.asarray(examples.outcomes, jnp.float32),
        jnp.asarray(counts, jnp.float32),
        jnp.float32(penalty),
    )
    return Fitted(features, float(penalty), jax.tree.map(np.asarray, weights), tokens, scaling)


def fit_penalty(
    examples: Examples,
    features: Sequence[str],
    *,
    seed: int,
    penalties: Sequence[float] = PENALTIES,
) -> Fitted:
    """`fit` under the penalty that predicts prompts best that a fit has not seen.

    Args:
      examples: of four prompts or more. Each quarter of the prompts is predicted from the others.
      features: of `_EQUATIONS`.
      penalties: to choose from, by the likelihood; of equals the first.
    """
    order = np.random.default_rng((_FOLDING, seed)).permutation(np.unique(examples.prompts))
    losses = []
    for penalty in penalties:
        loss = 0.0
        for fold in range(_FOLDS):
            unseen = np.isin(examples.prompts, order[fold::_FOLDS])
            fitted = fit(examples, features, penalty, counted=~unseen)
            loss += _loss(fitted, examples.where(unseen))
        losses.append(loss)
    return fit(examples, features, penalties[int(np.argmin(losses))])


def _loss(fitted: Fitted, examples: Examples) -> float:
    """-ln of the likelihood."""
    p = np.clip(fitted.probabilities(examples), 1e-12, 1 - 1e-12)
    return float(-np.where(examples.outcomes, np.log(p), np.log1p(-p)).sum())


def _common_tokens(examples: Examples, size: int) -> np.ndarray:
    """First tokens of several prompts, ascending, then -1: int [size]."""
    pairs = np.unique(np.stack([examples.first_tokens, examples.prompts]), axis=1)
    tokens, counts = np.unique(pairs[0], return_counts=True)
    tokens = tokens[counts >= _SEVERAL]
    return np.append(tokens, np.full(size - len(tokens), -1))


def _scaling(examples: Examples) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and deviation of the scores of every head [L, N], and of log2 of the length []."""
    by_name = {"scores": examples.scores, "length": np.log2(examples.lengths)}
    scaling = {}
    for name, values in by_name.items():
        values = values.astype(np.float64)
        deviation = values.std(axis=0)
        scaling[name] = values.mean(axis=0), np.where(deviation > 1e-6, deviation, 1.0)
    return scaling


def _inputs(
    examples: Examples,
    features: Sequence[str],
    first_tokens: np.ndarray,
    scaling: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> dict[str, jax.Array]:
    """float32 arrays by feature, as `_EQUATIONS` names their axes."""
    scores = (examples.scores - scaling["scores"][0]) / scaling["scores"][1]
    # A head whose score hardly ever varied would otherwise weigh without bounds where it does.
    scores = np.clip(scores, -_FARTHEST, _FARTHEST)
    length = (np.log2(examples.lengths) - scaling["length"][0]) / scaling["length"][1]
    shape = (len(examples), *examples.outcomes.shape[1:])
    inputs = {
        "head": np.ones(len(examples)),
        "length": length,
        "first_token": examples.first_tokens[:, None] == first_tokens[None, :],
        "layer_0": scores[:, 0],
        "previous": scores[:, :-1],
        "same_index": np.broadcast_to(scores[:, :1], shape),
    }
    return {name: jnp.asarray(inputs[name], jnp.float32) for name in features}


def _logits(weights: Mapping[str, jax.Array], inputs: Mapping[str, jax.Array]) -> jax.Array:
    """float32 [R, L - 1, N]."""
    terms = [jnp.einsum(_EQUATIONS[name], inputs[name], weights[name]) for name in inputs]
    return functools.reduce(jnp.add, terms) + weights["intercept"]


@jax.jit
def _fit(
    inputs: dict[str, jax.Array], outcomes: jax.Array, counts: jax.Array, penalty: jax.Array
) -> dict[str, jax.Array]:
    """counts: float32 [R], 1 for the examples to fit to and 0 for the others."""
    num_layers, num_heads = outcomes.shape[1:]
    sizes = {"l": num_layers, "n": num_heads, "m": num_heads}
    if "first_token" in inputs:
        sizes["u"] = inputs["first_token"].shape[1]
    weights = {"intercept": jnp.zeros((), jnp.float32)}
    for name in inputs:
        axes = _EQUATIONS[name].split(",")[1].split("->")[0]
        weights[name] = jnp.zeros([sizes[axis] for axis in axes], jnp.float32)

    def loss(weights: dict[str, jax.Array]) -> jax.Array:
        errors = optax.sigmoid_binary_cross_entropy(_logits(weights, inputs), outcomes)
        errors = jnp.sum(errors * counts[:, None, None])
        squares = sum(jnp.sum(jnp.square(weights[name])) for name in inputs)
        return (errors + penalty / 2 * squares) / outcomes.size

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry: tuple) -> tuple:
        weights, state, _, count = carry
        value, grad = value_and_grad(weights, state=state)
        updates, state = solver.update(grad, state, weights, value=value, grad=grad, value_fn=loss)
        size = optax.tree.norm(grad) * outcomes.size
        return optax.apply_updates(weights, updates), state, size, count + 1

    def going(carry: tuple) -> jax.Array:
        *_, size, count = carry
        return (count < _STEPS) & (size > _TOLERANCE * outcomes.size**0.5)

    start = weights, solver.init(weights), jnp.float32(jnp.inf), jnp.int32(0)
    return jax.lax.while_loop(going, step, start)[0]
