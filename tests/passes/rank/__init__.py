"""Tests of the pass ``rank``."""
