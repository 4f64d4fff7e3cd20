"""What ``root``, ``column`` and ``tree`` share: convolutions become hierarchical filter groups.

Imports: what a pass imports. Start reading: ``filter_groups``.
"""
