#!/usr/bin/env bash
# install.sh [EXTRA]: make .venv and install bardflow into it, with PyTorch's CPU build where there is no NVIDIA card.
# Uses uv where it is installed, else pip. PYTHON names the interpreter, TORCH_CPU_INDEX another index of CPU builds.
set -euo pipefail
cd "$(dirname "$0")"

python=${PYTHON:-python3}
target=.${1:+[$1]}
index=${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}
torch=$(grep '^torch==' constraints.txt)

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "bardflow needs Python 3.11 or newer, but $python is $("$python" --version 2>&1 || echo missing)." >&2
    echo "Name another one: make PYTHON=python3.12" >&2
    exit 1
fi

if command -v uv >/dev/null; then
    install() { uv pip install --quiet --python .venv/bin/python "$@"; }
    [ -d .venv ] || uv venv --quiet --python "$python" .venv
    echo "Installing into .venv with uv ..."
else
    # Python compiles the modules that are imported; pip would compile all of them, which takes 20 s longer.
    install() { .venv/bin/python -m pip --disable-pip-version-check --quiet install --no-compile "$@"; }
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    echo "Installing into .venv with pip (a minute or two, once) ..."
fi

# The default index has builds with CUDA for Linux, 3 GB with what they need. Without a card they bring nothing.
if [ "$(uname -s)" = Linux ] && [ ! -e /proc/driver/nvidia ] && [ ! -e /dev/nvidiactl ] &&
    ! .venv/bin/python -c 'import importlib.metadata as m; m.version("torch")' 2>/dev/null; then
    # Asked once and shortly: an index that cannot be reached would be asked again for each package.
    if .venv/bin/python - "$index/torch/" 2>/dev/null <<'PROBE'; then
import sys, urllib.request
urllib.request.urlopen(sys.argv[1], timeout=5).read(1)
PROBE
        echo "No NVIDIA card: PyTorch's CPU build, from $index"
        install --index-url "$index" --no-deps "$torch"
    else
        echo "No NVIDIA card, but $index cannot be reached: PyTorch comes from the default index."
    fi
fi
install --constraint constraints.txt --editable "$target"
