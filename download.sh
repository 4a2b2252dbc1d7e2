#!/usr/bin/env bash
# Fetches the FinQA files and a model, or takes files at hand; then plain stage commands use them.
set -euo pipefail
caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"

if [[ ! -x venv/bin/python ]]; then
    echo "download.sh: there is no venv/ yet; run ./setup.sh first" >&2
    exit 2
fi
if [[ -f .env ]]; then
    set -a
    . ./.env
    set +a
fi
exec venv/bin/python -m tools.download --caller "$caller" "$@"
