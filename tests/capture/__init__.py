"""Tests of nestify.capture."""
