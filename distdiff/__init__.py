"""DistDiff (arXiv 2403.06741): distribution-aware data expansion with diffusion models."""
