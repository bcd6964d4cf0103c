#!/bin/sh
# Makes .venv from requirements.lock with a pinned uv, and installs the project into it, editable. Skips what is done:
# the stamp holds the digest of everything that decides what is in it.
set -eu
cd "$(dirname "$0")/.."
stamp=.venv/skerry.stamp
wanted=$(cat requirements.lock pyproject.toml lab/uv.txt lab/venv.sh | sha256sum | cut -d' ' -f1)
[ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] || exit 0
started=$(date +%s)
rm -f "$stamp"
export PIP_CACHE_DIR="${PIP_CACHE_DIR:-$PWD/build/cache/pip}" UV_CACHE_DIR="${UV_CACHE_DIR:-$PWD/build/cache/uv}"
# The system's certificates, so that a company's own authority is trusted as everywhere else on the machine.
mkdir -p build/tmp
export TMPDIR="$PWD/build/tmp"
export PIP_DISABLE_PIP_VERSION_CHECK=1 UV_PYTHON_DOWNLOADS=never UV_SYSTEM_CERTS=true
new_enough() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; }
python=""
for candidate in /usr/bin/python3 python3.13 python3.12 python3.11 python3; do
    if new_enough "$candidate"; then
        python=$(command -v "$candidate")
        break
    fi
done
if [ -z "$python" ]; then
    echo "Skerry needs Python 3.11 to 3.13; Debian 12's package python3 is 3.11" >&2
    exit 1
fi
uv=build/uv/bin/uv
if [ "$(cat build/uv/skerry.stamp 2>/dev/null)" != "$(sha256sum <lab/uv.txt)" ]; then
    echo "  installing uv into build/uv"
    rm -rf build/uv
    "$python" -m venv build/uv
    build/uv/bin/python -m pip install -q --require-hashes -r lab/uv.txt
    sha256sum <lab/uv.txt >build/uv/skerry.stamp
fi
export VIRTUAL_ENV="$PWD/.venv"
new_enough .venv/bin/python || "$uv" venv -q --clear --prompt skerry --python "$python" .venv
echo "  installing the locked Python packages into .venv (libvirt-python is compiled)"
"$uv" pip sync -q --require-hashes requirements.lock
"$uv" pip install -q --no-deps -e .
echo "$wanted" >"$stamp"
echo "  virtual environment made in $(($(date +%s) - started)) s"
