"""Tests of nestify.targets."""
