"""What every method of dataset expansion shares; it names no method.

The folders by floors: each imports from floors of smaller numbers alone, not from its neighbours
on its own floor. `tests/commands/test_layering.py` reads this list. "No torch" holds for a whole
folder; no command's --help loads any, nor does the plan of an expansion.

     0  common      settings, errors, files, seeds; no torch
     1  pictures    contact sheets, charts, lettering; no torch
     1  metrics     measures of a classifier, and what they allow to be said; no torch
     2  images      one image file: its record, pixels, content
     3  data        labelled sets of real images: layouts, readers, splits, prompts, batches
     4  diffusion   Stable Diffusion: checkpoints, denoising, what a sampler is
     4  store       an expanded set on disk; no torch
     4  classifier  networks and what goes into them
     5  generation  making an expanded set: plan, loop, status
     5  training    classifiers learn: objectives, trainer, runs
     6  predict     finished classifiers on new images
     6  export      real and generated images in one folder for others; no torch
     6  report      the page that tells what came of runs; no torch
     7  measures    measures of a generated set
     8  selection   which images of a generated set are kept; no torch
     8  methods     all packages beside this one; none imports another
     9  scripts     expand.py, train_original.py, train_expand.py, parse_logs.py
    10  benchmarks  speed; it alone may name methods
    11  study       the whole experiment as one command; no torch
    12  advise      whether the experiment is worth it, by a pilot; no torch
    12  reproduce   the tables of the papers, measured beside published; no torch
"""
