#!/usr/bin/env sh
# PathMNIST: DistDiff's Table 2 and Fig. 7. GPUS="0 1" chooses devices; options of python -m expansion.reproduce follow: --dry_run, --jobs FILE.
cd "$(dirname "$0")/.." && . scripts/environment.sh && exec "$PYTHON" -m expansion.reproduce distdiff/table2 distdiff/fig7 --datasets pathmnist ${GPUS:+--devices $GPUS} "$@"
