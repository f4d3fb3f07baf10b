"""The account: clients, and what `nommerd aws` makes in it. Backends that live on AWS are beside their contracts."""
