"""Tests of nestify.support."""
