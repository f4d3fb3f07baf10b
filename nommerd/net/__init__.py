"""Traffic to the outside."""
