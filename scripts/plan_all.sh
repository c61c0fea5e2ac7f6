#!/usr/bin/env bash
# Plans every file of configs/plans/ for the target its head names; fails if one does not fit. Minutes each.
#   bash scripts/plan_all.sh [PART_OF_A_NAME]     PYTHON: a python with jax, libtpu and the CUDA plug-in
set -euo pipefail
cd "$(dirname "$0")/.."
status=0
for config in configs/plans/*"${1:-}"*.yaml; do
  target=$(sed -n 's/^# python -m jaxmath plan .* --topology \([^ ]*\)$/\1/p' "$config")
  "${PYTHON:-python}" -m jaxmath plan "$config" --topology "$target" || status=1
  echo
done
exit $status
