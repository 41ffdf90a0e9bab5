"""The paths by which a head attends, one file each, their kernels and the cache."""
