"""Shards become batches: one decoded cache per node, splits by patient, windows and augmentation at load time.

In: a folder of shards. Out: tensors.
"""
