"""Measures of a generated set: is it of the right kind, varied, rightly labelled, and no copy."""
