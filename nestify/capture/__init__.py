"""A user's model becomes one fx graph of ATen calls, with what differs in training and by batch.

``export_program`` runs torch.export; ``lowering`` brings its graph to our op set; ``train_diff``
and ``batch_diff`` compare a second trace with the first.

Imports: errors, support, dims, rules. Start reading: ``captured``, then ``lowering``.
"""
