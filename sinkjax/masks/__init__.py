"""Which path each head takes: `SinkMask`, its file, and masks chosen from scores."""
