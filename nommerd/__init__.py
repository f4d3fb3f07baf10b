"""nommerd: a self-hosted media encoder."""

__version__ = "0.1.0"
