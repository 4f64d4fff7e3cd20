"""What ``rank`` is made of: importances of positions, and the orders that follow from them.

Imports: what a pass imports. Start reading: ``importance``.
"""
