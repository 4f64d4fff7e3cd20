"""The parts of the search."""
