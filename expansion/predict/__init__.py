"""Uses finished classifiers on new images."""
