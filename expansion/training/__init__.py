"""Training of classifiers: objectives, loop, run folders."""
