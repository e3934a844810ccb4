"""Embeddings that are trained before images are made: folders, checks, the training loop."""
