"""Tests of nestify.passes."""
