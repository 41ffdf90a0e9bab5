"""A model compiled ahead of time, and text generated with it."""
