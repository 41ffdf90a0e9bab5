"""The paths by which a head attends: one file each, and the dense oracle that defines them."""
