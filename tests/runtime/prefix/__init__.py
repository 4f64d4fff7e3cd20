"""Tests of evaluations that start in the middle."""
