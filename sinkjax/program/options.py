"""What is chosen for each platform: the form of products, and XLA's options for one compile."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from sinkjax.products import PLAIN, CpuProducts, Products

CPU_OPTIONS: Mapping[str, Any] = {
    # YNNPACK gets matrix products alone. Reductions that it is given read at 0.4 to 1.5 GB/s.
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
    # The first would write a product to memory before reducing it, at 5 to 11 GB/s; the second
    # takes barriers away before anything is fused.
    "xla_disable_hlo_passes": "tree_reduction_rewriter,cse_barrier_expander",
    # Sums may be reassociated. Infinities and NaN stay what they are: other flags say so.
    "xla_cpu_enable_fast_math": True,
}


@dataclasses.dataclass(frozen=True)
class Choice:
    """How a model is compiled.

    Attributes:
      products: the form of its products.
      compiler_options: XLA's, for this compile alone.
    """

    products: Products
    compiler_options: Mapping[str, Any]


def choose(platform: str, devices: int) -> Choice:
    """The choice for a platform, as `jax.Device.platform` names it, and a number of devices.

    On TPUs and GPUs XLA's own products are left to it, and so they are where weights lie over
    several devices.
    """
    if platform == "cpu" and devices == 1:
        return Choice(CpuProducts(), CPU_OPTIONS)
    return Choice(PLAIN, {})
