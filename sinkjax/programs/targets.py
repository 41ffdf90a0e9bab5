"""Devices to compile for on a machine that has none of them.

XLA's compilers for TPUs and GPUs come as wheels and need no hardware until a program is run. What
is compiled this way can be read (memory, cost, HLO), not executed.
"""

import dataclasses
import importlib.util
from contextlib import AbstractContextManager

import jax
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from sinkjax.errors import InputError, Problem

# The smallest topology of each chip that is a whole host; programs here use one device of it.
_TPU_TOPOLOGIES = {
    "v4": "v4:2x2x1",
    "v5e": "v5e:2x2",
    "v5p": "v5p:2x2x1",
    "v6e": "v6e:2x2",
    "v7x": "tpu7x:2x2x1",
}


@dataclasses.dataclass(frozen=True)
class _Gpu:
    """What XLA's GPU compiler asks of a chip, under the names of its GpuTargetConfigProto."""

    name: str
    compute_capability: int
    accelerated: bool
    cores: int
    fpus_per_core: int
    clock_rate_ghz: float
    memory_bandwidth: int
    device_memory_size: int
    l2_cache_size: int
    shared_memory_per_core: int
    shared_memory_per_block_optin: int

    def target_config(self) -> str:
        """A GpuTargetConfigProto in text form; what is written out is common to all of them."""
        feature = "ACCELERATED_FEATURES" if self.accelerated else "NONE"
        return f"""
            gpu_device_info {{
              threads_per_block_limit: 1024
              threads_per_warp: 32
              threads_per_core_limit: 2048
              thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
              block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
              registers_per_core_limit: 65536
              registers_per_block_limit: 65536
              shared_memory_per_block: 49152
              shared_memory_per_block_optin: {self.shared_memory_per_block_optin}
              shared_memory_per_core: {self.shared_memory_per_core}
              core_count: {self.cores}
              fpus_per_core: {self.fpus_per_core}
              clock_rate_ghz: {self.clock_rate_ghz}
              memory_bandwidth: {self.memory_bandwidth}
              device_memory_size: {self.device_memory_size}
              l2_cache_size: {self.l2_cache_size}
              cuda_compute_capability {{
                major: {self.compute_capability} feature_extension: {feature}
              }}
            }}
            platform_name: "CUDA"
            dnn_version_info {{ major: 9 minor: 10 }}
            runtime_version {{ major: 12 minor: 8 }}
            device_description_str: "{self.name}"
        """


# Published figures of each chip, as XLA's own target_config/specs give them.
_GPUS = {
    "a100": _Gpu(
        name="NVIDIA A100-SXM4-80GB",
        compute_capability=8,
        accelerated=False,
        cores=108,
        fpus_per_core=64,
        clock_rate_ghz=1.41,
        memory_bandwidth=2_039_040_000_000,
        device_memory_size=85_100_068_864,
        l2_cache_size=41_943_040,
        shared_memory_per_core=167_936,
        shared_memory_per_block_optin=166_912,
    ),
    "h100": _Gpu(
        name="NVIDIA H100 80GB HBM3",
        compute_capability=9,
        accelerated=True,
        cores=132,
        fpus_per_core=128,
        clock_rate_ghz=1.98,
        memory_bandwidth=3_352_320_000_000,
        device_memory_size=84_942_979_072,
        l2_cache_size=52_428_800,
        shared_memory_per_core=233_472,
        shared_memory_per_block_optin=232_448,
    ),
    "b200": _Gpu(
        name="NVIDIA B200",
        compute_capability=10,
        accelerated=True,
        cores=148,
        fpus_per_core=128,
        clock_rate_ghz=1.965,
        memory_bandwidth=7_672_320_000_000,
        device_memory_size=191_514_411_008,
        l2_cache_size=132_644_864,
        shared_memory_per_core=233_472,
        shared_memory_per_block_optin=232_448,
    ),
}

TARGETS = (
    "cpu",
    *(f"tpu:{chip}" for chip in _TPU_TOPOLOGIES),
    *(f"cuda:{chip}" for chip in _GPUS),
)
"""What `target_device` knows."""


WITHOUT_TPU = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_LOG_DIR": "disabled",
}
"""For the environment of a process on a machine that has no TPU. libtpu, where it is installed,
asks around for one, and is told this in place of an answer, whatever is then compiled for; and it
does not keep other processes from compiling as well.
"""


def target_device(target: str) -> jax.Device:
    """One device of a kind, to compile for.

    Args:
      target: one of `TARGETS`.

    Raises:
      InputError: for a name that is not one of them, or where the wheels for it are missing.
    """
    platform, _, chip = target.partition(":")
    if target not in TARGETS:
        raise InputError(Problem("target", target, f"known are {', '.join(TARGETS)}"))
    if platform == "tpu":
        return _tpu_device(target, _TPU_TOPOLOGIES[chip])
    if platform == "cuda":
        return _cuda_device(target, _GPUS[chip])
    return jax.devices("cpu")[0]


def lowering_for(device: jax.Device) -> AbstractContextManager:
    """A context in which kernels are lowered for a device that is not here to be asked."""
    described = AbstractDevice(
        device_kind=device.device_kind, num_cores=None, platform=device.platform
    )
    return use_abstract_mesh(AbstractMesh((), (), abstract_device=described))


def _tpu_device(target: str, topology: str) -> jax.Device:
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(_missing(target, "tpu"))
    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]


def _cuda_device(target: str, gpu: _Gpu) -> jax.Device:
    plugins = ("jax_cuda12_plugin", "jax_cuda13_plugin")
    if not any(importlib.util.find_spec(plugin) for plugin in plugins):
        raise InputError(_missing(target, "cuda"))
    try:
        topology = topologies.get_topology_desc(
            platform="cuda", topology="1x1x1", target_config=gpu.target_config()
        )
    except NotImplementedError as error:
        # JAX gives the plugin up where it finds no CUDA, unless it was told not to look for one.
        raise InputError(
            Problem(
                "target",
                target,
                "JAX did not start its CUDA compiler, which looks for a GPU first; on a machine "
                "without one, set JAX_PLATFORMS=cpu",
            )
        ) from error
    return topology.devices[0]


def _missing(target: str, extra: str) -> Problem:
    return Problem(
        "target",
        target,
        "it needs XLA's compiler for it, which is not installed: "
        f"pip install -e '.[targets-{extra}]' in the checkout",
    )
