"""Tests of nestify.space."""
