# Sourced by quickstart.sh and test.sh: a virtual environment in .venv/ with one requirements file installed.
#   use_environment requirements.txt
use_environment() {
  local requirements=$1 stamp python
  python=${PYTHON:-python3}
  if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
    echo "$python is not Python 3.11 to 3.13; install one, or set PYTHON=/path/to/python3.12" >&2
    return 1
  fi
  if [ ! -x .venv/bin/python ]; then
    "$python" -m venv .venv || {
      rm -rf .venv
      echo "$python cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv" >&2
      return 1
    }
  fi
  # Installed once for each content of the requirements files.
  stamp=.venv/$(cat requirements.txt "$requirements" pyproject.toml | sha256sum | cut -c1-16)
  if [ ! -e "$stamp" ]; then
    .venv/bin/python -m pip install --quiet --quiet --upgrade pip
    .venv/bin/python -m pip install --quiet --quiet --requirement "$requirements"
    .venv/bin/python -m pip install --quiet --quiet --no-deps --editable .
    touch "$stamp"
  fi
}
