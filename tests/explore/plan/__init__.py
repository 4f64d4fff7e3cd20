"""Tests of nestify.explore.plan."""
