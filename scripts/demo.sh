#!/usr/bin/env bash
# DistDiff and DreamDA from end to end on 20 real digit scans: guide, 10x expansions, training, table.
# Cost: about 4 minutes on two CPU cores after installation. Output: demo/. A second call only prints the table.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
. scripts/stopping.bash

DEMO_DIR=${DEMO_DIR:-demo}
STEPS=${STEPS:-300}          # optimiser steps of every classifier
EXPAND_NUM=${EXPAND_NUM:-10} # variants of each real image
SHOTS=${SHOTS:-2}            # real images per class
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # two processes run side by side
begun=$SECONDS
place=(-d digits --data_dir "$DEMO_DIR/data" --shots "$SHOTS")
train=("${place[@]}" --checkpoint_dir "$DEMO_DIR/checkpoint" --budget steps --max_train_steps "$STEPS")
runs=$DEMO_DIR/checkpoint/digits/resnet10_tiny_unpretrained

side_by_side() { # COMMAND1 -- COMMAND2: both at once; fails if one fails
    local first=() status=0
    while [ "$1" != -- ]; do first+=("$1"); shift; done
    shift
    "${first[@]}" & local one=$!
    "$@" & local other=$!
    wait "$one" || status=1 # not a command in the foreground: bash would hear of SIGTERM after it
    wait "$other" || status=1
    return $status
}

expand() { # METHOD [OPTION ...]: both shards of an expansion
    local command=("$PYTHON" expand.py "${place[@]}" --num_images_per_prompt "$EXPAND_NUM" --method "$@" --total_split 2)
    side_by_side "${command[@]}" --split 0 -- "${command[@]}" --split 1
}

echo "== 1/5 Classifiers on $SHOTS real images a class, without and with RandAugment; the first is the guide"
side_by_side "$PYTHON" train_original.py "${train[@]}" -- \
    "$PYTHON" train_original.py "${train[@]}" --augment randaugment

echo "== 2/5 ${EXPAND_NUM}x expansion with img2img, two shards"
expand img2img
echo "== 3/5 ${EXPAND_NUM}x expansion with DistDiff, two shards"
expand distdiff --encoder_weight_path "${runs}_lr0.1/seed1/checkpoint.pth.tar"

echo "== 4/5 ${EXPAND_NUM}x expansion with DreamDA, two shards"
expand dreamda

echo "== 5/5 Classifiers on real + generated images; DreamDA's also with self-training (AMST)"
side_by_side "$PYTHON" train_expand.py "${train[@]}" --exp "img2img_${EXPAND_NUM}x" -- \
    "$PYTHON" train_expand.py "${train[@]}" --exp "distdiff_${EXPAND_NUM}x"
side_by_side "$PYTHON" train_expand.py "${train[@]}" --exp "dreamda_${EXPAND_NUM}x" -- \
    "$PYTHON" train_expand.py "${train[@]}" --exp "dreamda_${EXPAND_NUM}x" --labels amst

echo
"$PYTHON" parse_logs.py "$DEMO_DIR/checkpoint" --table
echo "The tiny diffusion model was trained on 1,000 other scans (assets/digits): the gain is what it carries over."
echo "Look at $DEMO_DIR/data/digits_expansion/*/contact_sheet.png and ${runs}*/seed1/curves.png"
echo "$((SECONDS - begun)) seconds without installation"
