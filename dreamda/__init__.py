"""DreamDA (arXiv 2403.12803): dataset expansion with a perturbed diffusion process."""
