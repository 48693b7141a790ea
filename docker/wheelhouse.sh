#!/usr/bin/env bash
# Fill docker/wheelhouse with every wheel that the image is made of, where the internet is; copy the folder to where it
# is not, and build there with PIP_NO_INDEX=1. Usage: docker/wheelhouse.sh [FOLDER WITH pip AND python]
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${1:-.venv/bin}
index=
if [ -e .env ]; then
    . docker/stack.sh
    index=$(setting TORCH_INDEX)
fi
packages=$("$bin/python" -c "
import tomllib
project = tomllib.load(open('pyproject.toml', 'rb'))['project']
print(*project['dependencies'], *project['optional-dependencies']['server'], 'hatchling', sep='\n')")
folder=docker/wheelhouse
torch=torch==$(sed -n 's/^torch==//p' constraints.txt)
if [ -e $folder/made-of ] && cmp -s <(cat pyproject.toml constraints.txt) $folder/made-of; then exit 0; fi
rm -f $folder/*.whl $folder/made-of
pip() { "$bin/pip" wheel --quiet --disable-pip-version-check -c constraints.txt --find-links $folder -w $folder "$@"; }
pip ${index:+--index-url "$index"} "$torch"
mapfile -t packages <<< "$packages"
pip "$torch" "${packages[@]}"
cat pyproject.toml constraints.txt > $folder/made-of
