"""Figures against a baseline taken in the same run. `python -m benchmarks` runs all, `python -m benchmarks NAME` one."""
