"""Classifiers and what goes into them: networks, preprocessing, augmentations."""
