#!/usr/bin/env bash
# Makes .venv with the project and its pins, unless it is there already. Sourced by the
# other scripts, which go on in the project's folder with .venv's python first.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
stamp=.venv/installed
wanted=$(cat pyproject.toml constraints.txt | cksum)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  python=${PYTHON:-python3}
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: Python 3.11 or newer is needed; name it by PYTHON=/path/to/python3." >&2
    exit 1
  }
  echo "installing into .venv (once; a few minutes)"
  "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check \
    --constraint constraints.txt --editable '.[all,test]'
  echo "$wanted" > "$stamp"
fi
export PATH="$PWD/.venv/bin:$PATH"
