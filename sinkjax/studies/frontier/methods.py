"""The ways to choose heads that the frontier holds against each other."""

METHODS = ("sink score", "own error", "sensitivity", "random")
SEARCHED, GATES = "budget search", "gates"
COPIES = {"layer_0": "copy layer 0", "adjacent": "copy the layer before", "output": "copy the best"}
"""Methods by the variants of `sinkjax copies`."""
