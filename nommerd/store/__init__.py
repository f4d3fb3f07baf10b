"""Where the records are. `base` is the contract; one backend a file."""
