"""Fine-tuning of a Stable Diffusion checkpoint, in full or by adapters, or from scratch."""
