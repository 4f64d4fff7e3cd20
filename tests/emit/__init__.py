"""Tests of nestify.emit."""
