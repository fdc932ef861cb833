#!/usr/bin/env bash
# Makes a virtual environment from a lock and installs this project into it; `make setup` calls it.
#   tools/setup.sh PYTHON LOCK FOLDER [PIP_ARGUMENT ...]
# With envs/cpu.txt it takes the small CPU build of torch where pip's own settings or PyTorch's index offer it, and
# PyPI's CUDA build with envs/cuda.txt where nothing does. PIP_ARGUMENTs replace the question to PyTorch's index.
set -euo pipefail
cd "$(dirname "$0")/.."

python=$1 lock=$2 venv=$3 arguments=("${@:4}")
log=$venv/setup.log
cpu_index=${CPU_INDEX:-https://download.pytorch.org/whl/cpu}

fail() { printf '%s\n' "$*" >&2; exit 1; }

command -v "$python" > /dev/null ||
    fail "There is no '$python' here: install Python 3.11 or newer, or say make PYTHON=/path/to/python3"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "Python 3.11 or newer is needed; '$python' is $("$python" -V 2>&1): say make PYTHON=/path/to/python3.11"
[ -f "$lock" ] || fail "There is no lock '$lock': LOCK is envs/cpu.txt (the default) or envs/cuda.txt"

[ -x "$venv/bin/pip" ] || "$python" -m venv --clear "$venv" ||
    fail "No virtual environment could be made; on Debian and Ubuntu: apt-get install python3-venv"
: > "$log"

version=$(sed -n 's/^torch==\([^ +;]*\).*/\1/p' envs/cpu.txt)
digest=$(sed -n '/^torch==/,/^[a-su-z]/s/.*--hash=sha256:\([0-9a-f]*\).*/\1/p' envs/cpu.txt | head -1)
tag=$("$python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
# The lock's digests are of files for Python 3.11 on Linux x86-64; elsewhere its versions are followed, unchecked.
checked=$([ "$tag $(uname -sm)" = 'cp311 Linux x86_64' ] && echo yes || echo no)

pip_offers_cpu_build() { # with pip's own settings and the arguments given
    timeout 20 "$venv/bin/pip" index versions torch --timeout 5 --retries 0 "${arguments[@]}" 2>> "$log" |
        grep -qF "$version+cpu"
}

index_offers_cpu_build() { # one page of PyTorch's index; nothing where it does not answer within five seconds
    local page
    page=$("$python" -c 'import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=5).read().decode())' \
        "$cpu_index/torch/" 2>> "$log") || return 1
    if [ "$checked" = yes ]; then grep -qF "$digest" <<< "$page"; else grep -qE "torch-$version(%2B|\+)cpu-$tag-" <<< "$page"; fi
}

build=CUDA size='about 3.1 GB to fetch, 7 GB on disk'
if [ "$lock" -ef envs/cpu.txt ]; then
    if [ "$(uname -s)" != Linux ] || pip_offers_cpu_build; then
        build=CPU
    elif [ ${#arguments[@]} -eq 0 ] && index_offers_cpu_build; then
        build=CPU
        arguments=(--extra-index-url "$cpu_index")
    else
        lock=envs/cuda.txt
        echo "torch's small CPU build is not available here ($cpu_index): PyPI's build runs on a CPU too, but is larger"
    fi
    [ $build = CUDA ] || size='about 0.5 GB to fetch, 2 GB on disk'
fi
echo "Setting up $venv/ from $lock with $("$python" -V) and torch's $build build: $size, a few minutes the first time"

pins=$lock
if [ "$checked" = no ]; then
    echo "  the digests in the lock are for Python 3.11 on Linux x86-64: here its versions are followed, unchecked"
    pins=$venv/pins.txt
    sed '/--hash=/d; s/ *\\$//' "$lock" > "$pins"
fi

total=$(grep -c '^[A-Za-z0-9].*==' "$lock")
heartbeat() { # a line every 20 s; what pip says goes to the log
    while sleep 20 &> /dev/null; do
        if grep -q '^Installing collected' "$log"; then
            echo "  unpacking $total packages, $SECONDS s gone"
        else
            echo "  $(grep -c '^Collecting\|^Processing' "$log") of $total packages found, $SECONDS s gone"
        fi
    done
}
heartbeat & beat=$!
trap 'kill $beat 2> /dev/null' EXIT

install() {
    "$venv/bin/pip" install --progress-bar off --no-compile "$@" >> "$log" 2>&1 || {
        tail -n 25 "$log" >&2
        fail "pip failed; all it said is in $log"
    }
}
# A lock that is followed to the digest is whole: nothing is left to resolve. Setuptools is in it.
[ "$checked" = no ] || arguments+=(--no-deps)
install "${arguments[@]}" -r "$pins"
install "${arguments[@]}" --no-deps --no-build-isolation -e .
echo "  installed in $SECONDS s"
