"""What every method of dataset expansion shares; it names no method.

Folders in the order of their floors: each imports only from folders above it in this list, or of
its own line.

    common        settings, errors, files, seeds; loads no torch
    pictures      contact sheets, charts, lettering           metrics     measures of a classifier
    images        one image file: record, pixels, content
    data          labelled sets of real images: layouts, readers, splits, prompts, batches
    diffusion     checkpoints, denoising, samplers            store       an expanded set on disk
    classifier    networks and what goes into them
    generation    plan, loop, status                          training    objectives, trainer, runs
    predict       finished classifiers on new images          export      one folder for others
    measures      measures of a generated set
    report        the page that tells what came of runs
    benchmarks    speed                                       study       the whole experiment

`benchmarks` and `study` stand above the methods' packages and the entry scripts.
"""
