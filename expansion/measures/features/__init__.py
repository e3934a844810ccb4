"""Features of images: the networks that give them, and where they are kept."""
