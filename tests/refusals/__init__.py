"""Networks that must stay as they are: each would go wrong if it were fused after all."""
