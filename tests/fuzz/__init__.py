"""The fuzzer: valid random models, grown from the op rules themselves, against every law.

``python -m tests.fuzz --models 10000 --seed 0`` grows models of the forms in ``table``, checks
that sliced, masked, extracted and exported subnets compute the same, shrinks a failure to a small
script, and reports what was covered.
"""
