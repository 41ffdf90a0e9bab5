"""Files that come with the project: flag files, prompts, texts and masks.

They lie in configs/ of a checkout, and in sinkjax/configs of a wheel. What one version ships, every
later version ships under the same name: results and papers quote it.
"""

import os
from pathlib import Path

_HERE = Path(__file__).resolve().parent
FOLDER = next(f for f in (_HERE / "configs", _HERE.parent / "configs") if f.is_dir())


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
    return shipped if os.path.isfile(shipped) and not os.path.isfile(path) else path


def names(folder: str, suffix: str) -> list[str]:
    """The names of what is shipped in a folder of `FOLDER`, without the suffix."""
    return sorted(path.name.removesuffix(suffix) for path in (FOLDER / folder).glob(f"*{suffix}"))
