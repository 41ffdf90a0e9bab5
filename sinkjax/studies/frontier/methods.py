"""The ways to choose heads that the frontier holds against each other."""

RANDOM = "random"
METHODS = ("sink score", "own error", "sensitivity", RANDOM)
SEARCHED, GATES = "budget search", "gates"
COPIES = {
    "layer_0": "copy layer 0",
    "adjacent": "copy the layer before",
    "output": "copy the best",
    "sinks": "sinks copy layer 0",
}
"""Methods by the variants of `sinkjax copies`."""
