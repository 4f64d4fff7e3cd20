"""Write a folder that needs torch alone: model.py, weights.safetensors, a model card.

Imports: errors, support, rules and emit. Start reading: ``folder``, then ``model_py``.
"""
