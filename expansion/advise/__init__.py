"""Which expansion is worth it for these images, by a pilot on the training images alone."""
