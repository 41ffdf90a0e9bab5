"""JAX's persistent compilation cache, as a flag: off unless asked for.

What lies in that cache is machine code that a later run executes, so the folder has to be the
user's own. Scripts that measure compile time leave it off: `Executable.from_cold` says so.
"""

import os
import pathlib
import stat

import jax
from absl import flags

from sinkjax.errors import InputError, about

flags.disclaim_key_flags()  # so that --help of a script shows what is defined here for it


def define_cache_flag() -> None:
    """Defines --compilation_cache for the calling script."""
    flags.DEFINE_string(
        "compilation_cache",
        None,
        "Folder, made for you alone, in which executables are kept for the next run; by default "
        "none are.",
    )


def use_cache() -> None:
    """Does what --compilation_cache says. Before anything is compiled.

    Raises:
      InputError: for a folder that cannot be made, or that others can write to or read.
    """
    name = flags.FLAGS.compilation_cache
    if name is None:
        return
    folder = pathlib.Path(name).absolute()
    with about("compilation_cache", name):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = folder.stat()
        except OSError as error:
            raise InputError(
                f"it cannot be made: {error.strerror}; name a folder of yours"
            ) from error
        if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
            raise InputError(
                "it is open to others, whose code would be run from it; close it with chmod 700, "
                "or name a folder that is not there yet"
            )
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
