"""The `nommerd` command."""
