#!/bin/sh
# Makes .venv and installs labkit into it. `sh tools/setup.sh` installs what a user needs, at the tested
# versions; `sh tools/setup.sh test` adds the test tools. Needs Python >= 3.11; uses uv when it is on PATH.
# A second run with nothing changed does nothing.
set -eu
cd "$(dirname "$0")/.."
goal=${1:-lab}
python=.venv/bin/python
log=build/setup.log

state() { # what an installation depends on; the path, because the editable install points to it
    { pwd; cat requirements.txt requirements.lock pyproject.toml setup.py tools/setup.sh; } | cksum
}

installed() { # installed lab|test
    [ -f ".venv/installed-$1" ] && [ "$(cat ".venv/installed-$1")" = "$(state)" ] && "$python" -c '' 2>/dev/null
}

find_python() { # the preferred versions first, newer ones only if there is nothing else
    for wanted in '(3, 11) <= sys.version_info < (3, 14)' 'sys.version_info >= (3, 14)'; do
        for name in ${PYTHON:-python3 python3.13 python3.12 python3.11 python python3.14}; do
            if "$name" -c "import sys; sys.exit(not ($wanted))" 2>/dev/null; then
                echo "$name"
                return
            fi
        done
    done
    echo "set-up: no suitable Python found (tried: ${PYTHON:-python3, python3.11 to python3.14, python})." \
        "labkit needs Python 3.11, 3.12 or 3.13: install one, or name it, as in 'make lab PYTHON=/path/to/python3.12'." >&2
    return 1
}

step() { # step TITLE COMMAND...
    title=$1
    shift
    start=$(date +%s)
    echo "set-up: $title ..."
    if "$@" >>"$log" 2>&1; then
        echo "set-up: $title: done in $(($(date +%s) - start)) s"
        return
    fi
    echo "set-up: $title: FAILED after $(($(date +%s) - start)) s. The last lines of $log say why:" >&2
    tail -n 15 "$log" | sed 's/^/    /' >&2
    exit 1
}

make_venv() {
    rm -rf .venv
    if command -v uv >/dev/null; then
        uv venv --seed --python "$1" .venv
    else
        "$1" -m venv .venv || { echo "On Debian and Ubuntu: apt install python3-venv"; return 1; }
    fi
}

install() {
    if command -v uv >/dev/null; then
        uv pip install --python "$python" "$@"
    else
        "$python" -m pip install --disable-pip-version-check "$@"
    fi
}

if installed "$goal"; then
    echo "set-up: nothing to do"
    exit
fi
mkdir -p build
: >"$log"
if ! "$python" -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    base=$(find_python)
    step "make .venv with $("$base" --version 2>&1)" make_venv "$base"
fi
rm -f .venv/installed-*
if [ "$goal" = test ]; then
    step "install the exact versions of requirements.lock (minutes the first time)" install -r requirements.lock
else
    step "install the packages of requirements.txt (minutes the first time)" \
        install -r requirements.txt -c requirements.lock
fi
step "install labkit itself" install --no-deps -e .
state >.venv/installed-lab
[ "$goal" != test ] || state >.venv/installed-test
