"""What a format that is read has for the fuzzer."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from sinkjax.studies import texts

PROSE = texts.read_text(texts.CHOOSE, 1, seed=0).text[:50_000]


@dataclasses.dataclass(frozen=True)
class Format:
    """Valid files of a format, in a folder of their own.

    Attributes:
      damaged: the names of files that are damaged, one of them an input.
      read: what the library reads from the folder; InputError where it refuses.
      expected: what it is to read if it reads something: by the files as they are, and by what it
        read of the undamaged ones. Any exception: it should have refused, but for what changes
        nothing. By default what the undamaged files gave: the format has checksums.
    """

    damaged: tuple[str, ...]
    read: Callable[[pathlib.Path], Any]
    expected: Callable[[pathlib.Path, Any], Any] = lambda folder, original: original
