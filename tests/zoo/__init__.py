"""The public zoo: models of torchvision, timm and transformers with random weights."""
