"""Backbones by name, with the weights they start from.

In: a name, channels, classes, weights. Out: a `torch.nn.Module` from (B, C, S, S) to (B, classes) logits.
"""
