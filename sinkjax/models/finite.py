"""What is not finite: logits, and all that is measured of a model, say the same of it."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from sinkjax.distributed import to_host
from sinkjax.errors import InputError


def not_finite(what: str, place: str = "") -> InputError:
    """Returns the error for values of a model that are not finite: what they are, and where."""
    return InputError(
        f"{what} are not finite{place}: activations outgrow the parameters' dtype, or the weights "
        "are damaged; with dtype float16, use bfloat16 or float32"
    )


def check_finite(what: str, values: Any, place: Callable[..., str] = lambda *index: "") -> None:
    """Checks an array of what a model gave; what is traced is taken on trust.

    Args:
      what: the values are called, in the plural.
      values: the array.
      place: says, from the index of the first that is not finite, where that is.

    Raises:
      InputError: for values that are not finite.
    """
    if isinstance(values, jax.core.Tracer):
        return
    finite = np.isfinite(to_host(values))
    if not finite.all():
        raise not_finite(what, place(*np.argwhere(~finite)[0].tolist()))
