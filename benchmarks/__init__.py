"""What this package takes beside what a user would take instead: `python -m benchmarks`, or `make bench`."""
