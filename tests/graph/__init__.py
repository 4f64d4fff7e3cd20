"""Tests of nestify.graph."""
