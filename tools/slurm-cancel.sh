#!/usr/bin/env bash
# Cancels the Slurm jobs of this user that were submitted from this checkout, as after a killed Snakemake.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
squeue --user "$(id -un)" --noheader --format='%i|%Z' |
    awk -F'|' -v here="$here" '$2 == here { print $1 }' | xargs -r scancel
