"""JAX's persistent compilation cache, off unless asked for.

What lies in that cache is machine code that a later run executes, so the folder has to be the
user's own. Scripts that measure compile time leave it off: `Executable.from_cold` says so.
"""

import os
import pathlib
import stat

import jax

from sinkjax.errors import InputError, about


def use_cache(name: str) -> None:
    """Has JAX keep executables in a folder, and take them from there. Before any is compiled.

    Raises:
      InputError: for a folder that cannot be made, or that others can write to or read.
    """
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
