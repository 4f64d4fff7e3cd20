"""Patterns: small models of each awkward idea, and exactly what must be found elastic in them."""
