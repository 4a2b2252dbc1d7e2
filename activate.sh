# Enters the virtual environment: source activate.sh
# Sourced, not run, because a child process cannot change the shell that called it. Works in bash and zsh.

if [ -n "${ZSH_VERSION:-}" ]; then _root=${(%):-%x}; else _root=${BASH_SOURCE[0]:-$0}; fi
_root=$(cd "$(dirname "$_root")" && pwd)

if [ -n "${BASH_VERSION:-}" ] && [ "${BASH_SOURCE[0]}" = "$0" ]; then
    echo "activate.sh: run 'source activate.sh' instead, so that this shell enters venv/" >&2
    exit 2
elif [ ! -f "$_root/venv/bin/activate" ]; then
    echo "activate.sh: there is no venv/ yet; run ./setup.sh first" >&2
    unset _root
    return 2
else
    . "$_root/venv/bin/activate"
    if [ -f "$_root/.env" ]; then
        set -a
        . "$_root/.env"
        set +a
    fi
    unset _root
fi
