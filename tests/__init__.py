"""The tests mirror the tree; shared pieces are imported as ``tests.<folder>.<module>``."""
