"""Encoder nodes on EC2."""
