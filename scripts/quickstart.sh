#!/usr/bin/env bash
# INTELLECT-MATH in miniature, end to end, on two CPU cores: see configs/quickstart.yaml.
# Further arguments are overrides: scripts/quickstart.sh seed=1 output=runs/seed1
set -euo pipefail
cd "$(dirname "$0")/.."
start=$SECONDS
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1} # memory in large pages: quicker on a CPU
source scripts/environment.sh
use_environment requirements.txt
echo "environment ready after $((SECONDS - start)) s"
.venv/bin/python -m jaxmath recipe configs/quickstart.yaml "$@"
echo "quickstart took $((SECONDS - start)) s"
