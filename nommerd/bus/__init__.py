"""How work travels. `base` is the contract; one backend a file."""
