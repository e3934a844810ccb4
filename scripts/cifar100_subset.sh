#!/usr/bin/env sh
# CIFAR-100, 100 images a class: DistDiff's Figs. 3 and 4. GPUS="0 1" chooses devices; options of python -m expansion.reproduce follow: --dry_run, --jobs FILE.
cd "$(dirname "$0")/.." && . scripts/environment.sh && exec "$PYTHON" -m expansion.reproduce distdiff/fig3 distdiff/fig4 --datasets cifar100_subset ${GPUS:+--devices $GPUS} "$@"
