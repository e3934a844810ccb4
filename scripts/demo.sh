#!/usr/bin/env bash
# The study on 20 MNIST digits, with an embedded diffusion model of other writers' digits: four methods, three seeds, and the page.
# Cost: about 5 minutes on two CPU cores after installation. Output: demo/. A second call only makes the result again.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh

DEMO_DIR=${DEMO_DIR:-demo}
begun=$SECONDS
"$PYTHON" -m expansion.study mnist-few-shot --yes --shots "${SHOTS:-2}" --num_images_per_prompt "${EXPAND_NUM:-10}" \
    --data_dir "$DEMO_DIR/data" --output_dir "$DEMO_DIR" "$@"
echo "The tiny diffusion model learnt from 1,000 digits by other writers (assets/digits): the gain is what it carries over."
echo "$((SECONDS - begun)) seconds without installation"
