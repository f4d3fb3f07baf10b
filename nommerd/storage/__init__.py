"""Where media comes from and goes to. `base` is the contract; one backend a file; backends by URI scheme."""
