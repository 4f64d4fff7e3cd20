"""Tests of nestify.runtime."""
