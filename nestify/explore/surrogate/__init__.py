"""The search method ``algorithm1`` predicts scores: a Gaussian process and what it needs.

Imports: the rest of explore that knows no nested model. Start reading: ``gaussian_process``.
"""
