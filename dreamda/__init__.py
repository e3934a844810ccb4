"""DreamDA (arXiv 2403.12803): diverse and faithful dataset expansion with a perturbed diffusion process."""
