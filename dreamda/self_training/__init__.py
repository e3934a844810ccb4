"""AMST: DreamDA's self-training on generated images."""
