"""DiffuseMix (CVPR 2024): half a real image, half its edit by a prompt, blended with a fractal."""
