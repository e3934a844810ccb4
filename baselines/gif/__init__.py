"""GIF-SD (arXiv 2211.13976): the last latent is moved to be informative, by a score of CLIP."""
