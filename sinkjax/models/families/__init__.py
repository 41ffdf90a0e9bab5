"""The families of models that the decoder computes, by the `model_type` of their configs.

Each is the `FAMILY` of a file here (CONTRIBUTING.md has the recipe for another).
"""

import importlib
import pkgutil

from sinkjax.models.families.family import Family

_NAMES = [module.name for module in pkgutil.iter_modules(__path__, f"{__name__}.")]
_FILES = [vars(importlib.import_module(name)) for name in _NAMES]
FAMILIES: dict[str, Family] = {
    family.model_type: family for file in _FILES if (family := file.get("FAMILY"))
}
