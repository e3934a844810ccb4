"""Labelled sets of real images: layouts, splits, names, prompts, batches."""
