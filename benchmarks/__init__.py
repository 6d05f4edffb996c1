"""Speed of this package compared with the usual alternatives: `python -m benchmarks`, or `make bench`."""
