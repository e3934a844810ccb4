"""Measures of a classifier on the test set, and what they allow to be said."""
