#!/usr/bin/env bash
# Installs requirements-dev.txt into .venv/ and runs the tests, two files at a time. Further arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
use_environment requirements-dev.txt
.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/python -m pytest --numprocesses 2 --dist loadfile "$@"
