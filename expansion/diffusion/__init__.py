"""Stable Diffusion: checkpoints, encoders, denoising, and what a sampler is."""
