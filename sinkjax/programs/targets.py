"""Devices to compile for on a machine that has none of them.

XLA's compilers for TPUs and GPUs come as wheels and need no hardware until a program is run. What
is compiled this way can be read (memory, cost, HLO), not executed.
"""

import importlib.util
from contextlib import AbstractContextManager

import jax
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from sinkjax.errors import InputError, Problem, check_kind, first_line

# The smallest topology of each chip that is a whole host; programs here use one device of it.
_TPU_TOPOLOGIES = {
    "v4": "v4:2x2x1",
    "v5e": "v5e:2x2",
    "v5p": "v5p:2x2x1",
    "v6e": "v6e:2x2",
    "v7x": "tpu7x:2x2x1",
}


# Published figures of each chip, as XLA's own target_config/specs give them: its name, and fields
# of a GpuDeviceInfoProto.
_GPUS = {
    "a100": (
        "NVIDIA A100-SXM4-80GB",
        """
              core_count: 108 fpus_per_core: 64 clock_rate_ghz: 1.41
              memory_bandwidth: 2039040000000 device_memory_size: 85100068864
              l2_cache_size: 41943040
              shared_memory_per_core: 167936 shared_memory_per_block_optin: 166912
              cuda_compute_capability { major: 8 feature_extension: NONE }
        """,
    ),
    "h100": (
        "NVIDIA H100 80GB HBM3",
        """
              core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
              memory_bandwidth: 3352320000000 device_memory_size: 84942979072
              l2_cache_size: 52428800
              shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
              cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
        """,
    ),
    "b200": (
        "NVIDIA B200",
        """
              core_count: 148 fpus_per_core: 128 clock_rate_ghz: 1.965
              memory_bandwidth: 7672320000000 device_memory_size: 191514411008
              l2_cache_size: 132644864
              shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
              cuda_compute_capability { major: 10 feature_extension: ACCELERATED_FEATURES }
        """,
    ),
}


def _target_config(name: str, figures: str) -> str:
    """A GpuTargetConfigProto in text form; what is written out is common to all of them."""
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
          {figures}
        }}
        platform_name: "CUDA"
        dnn_version_info {{ major: 9 minor: 10 }}
        runtime_version {{ major: 12 minor: 8 }}
        device_description_str: "{name}"
    """


TARGETS = ("cpu", *(f"tpu:{chip}" for chip in _TPU_TOPOLOGIES), *(f"cuda:{chip}" for chip in _GPUS))
"""The names that `target_device` knows."""

WITHOUT_TPU = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_LOG_DIR": "disabled",
}
"""Environment variables for a process on a machine that has no TPU. They keep libtpu, where it is
installed, from asking the network for one, and from locking other processes out of compiling.
"""


def target_device(target: str) -> jax.Device:
    """One device of a kind, as of `target_devices`."""
    return target_devices(target)[0]


def target_devices(target: str) -> list[jax.Device]:
    """Devices of a kind, to compile for.

    Args:
      target: one of `TARGETS`; of a TPU with its topology behind it, as in `tpu:v5e:2x4`, without
        which it is one host's.

    Raises:
      InputError: for a name that is not one of them, a topology that the chip does not have, or
        where the wheels for it are missing.
    """
    check_kind("target", target, str, "a target's name")
    platform, chip, shape = (*target.split(":", 2), "", "")[:3]
    known = target.removesuffix(f":{shape}") if platform == "tpu" and shape else target
    if known not in TARGETS:
        text = f"known are {', '.join(TARGETS)}; a TPU's may have a topology, as in tpu:v5e:2x4"
        raise InputError(Problem("target", target, text))
    if platform == "cpu":
        return jax.devices("cpu")
    wheels = ("libtpu",) if platform == "tpu" else ("jax_cuda12_plugin", "jax_cuda13_plugin")
    if not any(map(importlib.util.find_spec, wheels)):
        text = (
            "it needs XLA's compiler for it, which is not installed: "
            f"pip install -e '.[targets-{platform}]' in the checkout"
        )
        raise InputError(Problem("target", target, text))
    if platform == "cuda":
        how = {"topology": "1x1x1", "target_config": _target_config(*_GPUS[chip])}
        try:
            return topologies.get_topology_desc(platform="cuda", **how).devices
        except NotImplementedError as error:
            # JAX gives the plugin up where it finds no CUDA, unless told not to look for one.
            text = (
                "JAX did not start its CUDA compiler, which looks for a GPU first; on a machine "
                "without one, set JAX_PLATFORMS=cpu"
            )
            raise InputError(Problem("target", target, text)) from error
    host = _TPU_TOPOLOGIES[chip]
    try:
        return topologies.get_topology_desc(
            f"{host.split(':')[0]}:{shape}" if shape else host, "tpu"
        ).devices
    except Exception as error:  # of several classes
        such = f"{platform}:{chip}:{host.partition(':')[2]}"
        text = f"it has no such topology ({first_line(error)}); give one such as {such}"
        raise InputError(Problem("target", target, text)) from error


def lowering_for(device: jax.Device) -> AbstractContextManager:
    """A context in which kernels are lowered for a device that is not here to be asked."""
    described = AbstractDevice(
        device_kind=device.device_kind, num_cores=None, platform=device.platform
    )
    return use_abstract_mesh(AbstractMesh((), (), abstract_device=described))


def platform_of(target: str) -> str:
    """The platform of one of `TARGETS`, as `jax.Device.platform` names it."""
    platform = target.partition(":")[0]
    return "gpu" if platform == "cuda" else platform
