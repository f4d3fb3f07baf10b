"""What makes releases: not part of the package."""
