"""The choices for each platform: products, attention, and XLA's options for one compile."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import jax.numpy as jnp

from sinkjax.attention.kernels import XLA, Kernel, Xla
from sinkjax.attention.products import PLAIN, CpuProducts, Products
from sinkjax.errors import InputError, Problem, is_one_of
from sinkjax.models.config import LlamaConfig

CPU_OPTIONS: Mapping[str, Any] = {
    # YNNPACK gets matrix products alone. Reductions that it is given read at 0.4 to 1.5 GB/s.
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
    # The first would write a product to memory before reducing it, at 5 to 11 GB/s; the second
    # takes barriers away before anything is fused; the third, of jax 0.11 and later, compiles small
    # loops by what knows no barriers.
    "xla_disable_hlo_passes": (
        "tree_reduction_rewriter,cse_barrier_expander,small-while-loop-hoisting"
    ),
    # Sums may be reassociated. Infinities and NaN stay what they are: other flags say so.
    "xla_cpu_enable_fast_math": True,
}

CPU_PROMPT_OPTIONS: Mapping[str, Any] = {
    **CPU_OPTIONS,
    # Bits of a register, where a core has such: the softmax of a prompt gains by all of them, a
    # decode step, which waits for memory, loses.
    "xla_cpu_prefer_vector_width": 512,
}


@dataclasses.dataclass(frozen=True)
class Choice:
    """The form of a model's products, and XLA's options for its compile alone.

    Attributes:
      prompt_options: of the executables that compute prompts.
      decode_options: of the one that decodes.
    """

    products: Products
    prompt_options: Mapping[str, Any]
    decode_options: Mapping[str, Any]


def choose(platform: str, devices: int) -> Choice:
    """The choice for a platform, as `jax.Device.platform` names it, and a number of devices.

    On TPUs and GPUs XLA's own products are left to it, and so they are where weights lie over
    several devices.
    """
    if _is_one_cpu(platform, devices):
        return Choice(CpuProducts(), CPU_PROMPT_OPTIONS, CPU_OPTIONS)
    return Choice(PLAIN, {}, {})


def _is_one_cpu(platform: str, devices: int) -> bool:
    return platform == "cpu" and devices == 1


_AUTO = "auto"

Attention = Literal["xla", "splash", "pallas", "auto"]
ATTENTION: tuple[str, ...] = get_args(Attention)
"""Names of the kernels for a prompt's attention. `auto` is, for each prompt length, the platform's
kernel where it can compute that length, and `xla` where not, or over several devices.
"""

DEFAULT_ATTENTION = XLA.name
"""The kernel of every platform. No other has been timed, or run on the chip that it is made for:
until one was, beside `xla`, it is asked for by name.
"""


@functools.cache
def _kernels() -> Mapping[str, Kernel]:
    """Every kernel of `ATTENTION`, by its name."""
    from sinkjax.attention.pallas import Pallas  # slow to import, as JAX's Pallas is
    from sinkjax.attention.splash import Splash

    return {kernel.name: kernel for kernel in (XLA, Splash(), Pallas())}


def choose_attention(
    name: str,
    platform: str,
    devices: int,
    lengths: Iterable[int],
    config: LlamaConfig,
    dtype: jnp.dtype,
) -> dict[int, Kernel]:
    """Chooses the kernel that computes attention, by prompt length.

    Args:
      name: one of `ATTENTION`.
      platform, devices: as for `choose`.
      lengths: of prompts, padded.
      config, dtype: of the model.

    Raises:
      InputError: for another name, and for a kernel on another platform than its own, over several
        devices, or of what it cannot compute.
    """
    if not is_one_of(name, ATTENTION):
        raise InputError(Problem("attention", name, f"allowed are {', '.join(ATTENTION)}"))

    def problems(kernel: Kernel, length: int) -> list[str]:
        texts = kernel.problems(length, config.head_dim, dtype)
        if kernel.platform not in (None, platform):
            texts.append(f"on a {platform} ({kernel.name} is made for a {kernel.platform})")
        if kernel.platform is not None and devices > 1:
            texts.append(f"over {devices} devices ({kernel.name} runs on one)")
        return texts

    xla = Xla(streams=_is_one_cpu(platform, devices))
    if name == _AUTO:
        own = [kernel for kernel in _kernels().values() if kernel.platform == platform]
        return {
            length: next((kernel for kernel in own if not problems(kernel, length)), xla)
            for length in lengths
        }
    kernel = _kernels()[name]
    texts = dict.fromkeys(text for length in lengths for text in problems(kernel, length))
    if texts:
        way_on = f"choose {XLA.name}, or {_AUTO}, which takes {XLA.name} where it has to"
        raise InputError(
            *(Problem("attention", name, f"it cannot compute {text}; {way_on}") for text in texts)
        )
    return dict.fromkeys(lengths, xla if kernel == XLA else kernel)
