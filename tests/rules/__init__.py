"""Tests of nestify.rules; tests/laws runs every op."""
