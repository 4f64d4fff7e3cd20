"""The rewrite passes, one a file; imported as ``nestify.passes``."""
