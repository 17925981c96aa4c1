"""What people do with a fused model, on small but real networks."""
