"""Tests of nestify.analysis."""
