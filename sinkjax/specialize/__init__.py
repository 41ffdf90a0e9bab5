"""From a model and a static mask to a model without the work that the mask removes."""

from sinkjax.specialize.build import SpecializedLlama, specialize

__all__ = ["SpecializedLlama", "specialize"]
