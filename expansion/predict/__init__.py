"""Finished classifiers on new images."""
