"""Tests of nestify.nested."""
