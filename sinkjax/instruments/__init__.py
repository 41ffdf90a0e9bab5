"""What is measured on a model: sinks, token losses, errors and patterns."""
