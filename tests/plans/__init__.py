"""Tests of nestify.plans."""
