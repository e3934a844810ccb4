"""Real and generated images in one folder that others can use."""
