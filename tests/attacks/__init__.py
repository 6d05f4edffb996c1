"""Faults that the package must survive: what was tried, and how it is seen that the guard is what helps."""
