#!/usr/bin/env bash
# Runs the tests: bash scripts/test.sh [pytest arguments]
# Those that train whole protocols or several processes wait for -m slow.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
python -m pytest -n 2 --dist worksteal -m "not slow" "$@"
