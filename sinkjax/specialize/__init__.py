"""From a model and a static mask to a model without the work that the mask removes."""
