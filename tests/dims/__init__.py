"""Tests of nestify.dims."""
