"""The dense oracle, to which every fast path is held."""
