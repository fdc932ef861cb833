#!/usr/bin/env bash
# Makes the locks in envs/ again from envs/direct.txt: exact versions with the digests of their files.
#   tools/lock.sh [OPTION of `uv pip compile` ...]     e.g. --upgrade-package numpy, --find-links FOLDER
# cuda.txt takes PyPI's torch, a CUDA build; cpu.txt the one of PyTorch's CPU index, or of the --find-links given.
# Versions that direct.txt does not name stay as they are unless an --upgrade option says otherwise.
set -euo pipefail
cd "$(dirname "$0")/.."

new=$(mktemp -d)
trap 'rm -rf "$new"' EXIT
export UV_FIND_LINKS=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}} # uv does not read pip's settings

compile() { # LOCK [OPTION ...]: its text without a header, in $new
    sed '/^torch==/d; /--hash/d; s/ *\\$//' "envs/$1.txt" > "$new/$1.pins" # uv keeps these versions
    uv pip compile envs/direct.txt --quiet --generate-hashes --no-header --no-annotate \
        --python-version 3.11 --python-platform x86_64-manylinux_2_28 --output-file "$new/$1.pins" "${@:2}"
}

cp envs/docs.txt "$new/docs.pins"
header() { sed -n '/^#/p; /^$/q' "envs/$1"; }

if [ -n "$UV_FIND_LINKS" ] || [[ " $* " == *" --find-links"* ]]; then
    compile cpu "$@"
else
    compile cpu --torch-backend cpu "$@"
fi
sed 's/+cpu//; s/ *\\$//; /--hash/d' "$new/cpu.pins" > "$new/constraints"
UV_FIND_LINKS='' compile cuda --constraints "$new/constraints" "$@"

# torch without its build tag, as a machine without that build (a Mac) needs it; the digest is the CPU build's.
sed -i 's/^\(torch==[^+ ]*\)+cpu/\1/' "$new/cpu.pins"

uv pip compile envs/docs.in --quiet --generate-hashes --no-header --no-annotate --python-version 3.11 \
    --python-platform x86_64-manylinux_2_28 --output-file "$new/docs.pins" "$@"
{ header docs.txt; echo; cat "$new/docs.pins"; } > envs/docs.txt

for name in cpu cuda; do
    { header "$name.txt"; echo; cat "$new/$name.pins"; } > "$new/$name.txt"
    { sed '/- pip:/q' "envs/$name.yaml"
      [ "$name" = cuda ] || echo '      - --extra-index-url https://download.pytorch.org/whl/cpu'
      grep -o '^[A-Za-z0-9][^ ;]*==[^ ;]*' "$new/$name.pins" | sed 's/^/      - /'; } > "$new/$name.yaml"
done
mv "$new"/{cpu,cuda}.{txt,yaml} envs/
echo "$(grep -c '^[a-z].*==' envs/cpu.txt) pins in envs/cpu.txt, $(grep -c '^[a-z].*==' envs/cuda.txt) in envs/cuda.txt"
