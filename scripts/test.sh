#!/usr/bin/env bash
# Runs the tests: bash scripts/test.sh [pytest arguments]
# Those that train whole protocols or several processes wait for -m slow.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
# Container images often set it. Each worker would then rewrite all tests anew.
unset PYTHONDONTWRITEBYTECODE
# Three workers keep two cores busy: tests also wait for disks and other processes.
# COVERAGE names a file for the lines that the tests run; SlipCover costs them little time.
python ${COVERAGE:+-m slipcover --source mtl_jax --json --out "$COVERAGE"} \
  -m pytest -n 3 --dist worksteal -m "not slow" "$@"
