"""Training against the baseline's logits, which gates and repairs share."""
