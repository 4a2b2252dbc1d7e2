#!/usr/bin/env bash
# Makes or updates the virtual environment in venv/; quick when nothing changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
    cat <<'TEXT'
usage: ./setup.sh [--restart] [--cpu | --cuda] [--extras NAME...]

  --restart         remove venv/ and build it again
  --cpu             the CPU build of torch (default where no NVIDIA GPU answers)
  --cuda            the CUDA build of torch (default where one does)
  --extras NAME...  also install requirements-NAME.txt: dev (tests), trackio, wandb (--report_to), bench (opponents),
                    vllm (--backend vllm; for NVIDIA GPUs)

PYTHON=/path/to/python3 ./setup.sh uses that interpreter to make venv/.
TEXT
}

fail() {
    echo "setup.sh: $*" >&2
    exit 2
}

restart=no build="" extras=()
while (($#)); do
    case $1 in
        --restart) restart=yes ;;
        --cpu | --cuda)
            [[ -z $build || $build == "${1#--}" ]] || fail "--cpu and --cuda exclude each other"
            build=${1#--}
            ;;
        --extras)
            [[ $# -gt 1 && $2 != -* ]] || fail "--extras needs at least one name; there are: $(ls requirements-*.txt | sed 's/requirements-//; s/\.txt//' | xargs)"
            while [[ $# -gt 1 && $2 != -* ]]; do
                extras+=("$2")
                shift
            done
            ;;
        -h | --help) usage && exit 0 ;;
        *) fail "unknown argument '$1'; ./setup.sh --help lists the arguments" ;;
    esac
    shift
done

files=(requirements.txt)
for name in ${extras[@]+"${extras[@]}"}; do
    [[ -f requirements-$name.txt ]] ||
        fail "no requirements-$name.txt for --extras $name; there are: $(ls requirements-*.txt | sed 's/requirements-//; s/\.txt//' | xargs)"
    files+=("requirements-$name.txt")
done

python_is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local name
    for name in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if python_is_new_enough "$name"; then
            echo "$name"
            return
        fi
    done
    fail "needs Python 3.11 or newer (trl and transformers do), found $(${PYTHON:-python3} --version 2>&1 | head -1); install one or name it: PYTHON=/path/to/python3 ./setup.sh"
}

# The stamp is written last, so an interrupted installation is finished by the next call. One line per requirements file.
stamp=venv/.installed
[[ $restart == no ]] || rm -rf venv
if [[ ! -x venv/bin/python ]] || ! python_is_new_enough venv/bin/python; then
    python=$(find_python)
    echo "setup.sh: making venv/ with $("$python" --version)"
    rm -rf venv
    "$python" -m venv venv || fail "could not make venv/ (on Debian and Ubuntu: apt install python3-venv)"
fi
installed_build=$([[ ! -f $stamp ]] || sed -n 's/^build //p' "$stamp")
if [[ -z $build ]]; then
    build=$installed_build
    [[ -n $build ]] || build=$(nvidia-smi -L 2>/dev/null | grep -q . && echo cuda || echo cpu)
fi

current=yes
[[ $build == "$installed_build" ]] || current=no
for file in "${files[@]}"; do
    grep -qxF "$(cksum "$file")" "$stamp" 2>/dev/null || current=no
done
if [[ $current == yes ]]; then
    echo "setup.sh: venv/ is up to date ($build)"
    exit 0
fi

# Extras that were installed before stay part of the environment.
for file in requirements-*.txt; do
    if grep -qF " $file" "$stamp" 2>/dev/null && [[ " ${files[*]} " != *" $file "* ]]; then files+=("$file"); fi
done
rm -f "$stamp"

pip() { venv/bin/python -m pip --disable-pip-version-check "$@"; }
torch_build() { venv/bin/python -c 'import torch; print("cuda" if torch.version.cuda else "cpu")' 2>/dev/null || true; }

# PyPI's torch for Linux brings several gigabytes of CUDA libraries; the CPU build is marked +cpu. It is taken from
# where pip is configured to look, else from PyTorch's own index.
version=$(sed -n 's/^torch==//p' requirements.txt)
have=$(venv/bin/python -c 'import importlib.metadata as m; print(m.version("torch"))' 2>/dev/null || true)
if [[ ${have%%+*} != "$version" || $(torch_build) != "$build" ]]; then
    echo "setup.sh: installing torch $version ($build)"
    if [[ $build == cuda || $(uname -s) != Linux ]]; then
        pip install -qq --upgrade --force-reinstall "torch==$version" || fail "could not install torch $version; pip's message is above"
    else
        pip install -qq "torch==$version+cpu" 2>/dev/null ||
            pip install -qq --extra-index-url https://download.pytorch.org/whl/cpu "torch==$version+cpu" ||
            fail "no CPU build of torch $version within reach; pip's message is above. './setup.sh --cuda' takes PyPI's build (several gigabytes)"
    fi
    [[ $build == cpu || $(torch_build) == cuda ]] ||
        echo "setup.sh: warning: pip found a torch without CUDA, so GPUs will not be used (remove the CPU wheel from pip's sources)" >&2
fi

# vLLM takes an older transformers than requirements.txt names: it is installed last, and has the last word.
first=() last=()
for file in "${files[@]}"; do
    if [[ $file == requirements-vllm.txt ]]; then last=("$file"); else first+=("$file"); fi
done
echo "setup.sh: installing ${files[*]}"
{ pip install -qq ${first[@]/#/-r } && { ((!${#last[@]})) || pip install -qq -r "${last[0]}"; }; } || fail "could not install the requirements; pip's message is above; ./setup.sh continues where it stopped"
{
    echo "build $build"
    cksum "${files[@]}"
} >"$stamp"
echo "setup.sh: venv/ is ready ($build); 'source activate.sh' enters it"
