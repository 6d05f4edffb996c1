"""Faults that the package must survive, and a check that each guard is what prevents its fault."""
