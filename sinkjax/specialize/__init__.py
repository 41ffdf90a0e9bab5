"""Makes of a model and a static mask a model without the work that the mask removes."""
