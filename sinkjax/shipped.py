"""Files that come with the project: flag files, prompts, texts and masks.

They lie in configs/ of a checkout, and in sinkjax/configs of a wheel. A name that one version
ships is read by every later one, since results and papers quote it: the same file, or what
`REPLACED` it, which is said.
"""

import logging
import os
from pathlib import Path

_HERE = Path(__file__).resolve().parent
FOLDER = next(f for f in (_HERE / "configs", _HERE.parent / "configs") if f.is_dir())

REPLACED = {
    "smollm2-135m-24-sinks": "smollm2-135m-24",
    "smollm2-135m-4096-windows": "smollm2-135m-8000",
    **dict.fromkeys(
        (f"smollm2-135m-512-{name}" for name in ("gates", "groups", "savings", "windows")),
        "smollm2-135m-512",
    ),
}
"""Masks that no longer ship, each by the name of the one that is read in its place."""

_logger = logging.getLogger(__name__)


def find(name: str | Path, folder: str = "", suffix: str = "") -> Path:
    """A file as it is named where there is one, else the shipped one of that name, if there is.

    Args:
      name: of a file; of a shipped one, a bare name or, as in a checkout, `configs/...`.
      folder: of `FOLDER`, in which a bare name is looked up.
      suffix: of the shipped file, which a bare name leaves out.
    """
    path = Path(name)
    if path.parts[:1] == ("configs",):
        shipped = FOLDER.joinpath(*path.parts[1:])
    elif len(path.parts) == 1:
        shipped = FOLDER / folder / f"{path.name.removesuffix(suffix)}{suffix}"
    else:
        return path
    # os.path's answers no for names that are too long or hold a NUL, which pathlib raises for.
    if os.path.isfile(path):
        return path
    gone = shipped.name.removesuffix(suffix)
    if instead := REPLACED.get(gone):
        text = "%s no longer ships, since it promised a mean KL alone; %s is read in its place"
        _logger.warning(text, gone, instead)
        return shipped.with_name(f"{instead}{suffix}")
    return shipped if os.path.isfile(shipped) else path


def names(folder: str, suffix: str) -> list[str]:
    """The names of what is shipped in a folder of `FOLDER`, without the suffix."""
    return sorted(path.name.removesuffix(suffix) for path in (FOLDER / folder).glob(f"*{suffix}"))
