#!/bin/sh
# Finds the browser that tests/browser needs, or installs Debian's chromium where apt-get may; exits 0 when there is one.
set -u
cd "$(dirname "$0")/.."
log=build/browser.log
export DEBIAN_FRONTEND=noninteractive

works() { # runs, because some systems have a stand-in that only names another shop
    for name in ${LABKIT_CHROMIUM:-chromium chromium-browser google-chrome}; do
        "$name" --version >/dev/null 2>&1 && return
    done
    return 1
}

apt() {
    apt-get -o Acquire::http::Timeout=20 -o Acquire::Retries=1 -o DPkg::Lock::Timeout=60 "$@" >>"$log" 2>&1
}

add() {
    apt install -y --no-install-recommends chromium
}

works && exit
skipped="tests/browser is skipped. Any chromium on PATH, or named in LABKIT_CHROMIUM, would do."
if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
    echo "browser: there is none, and only root can install one with apt-get; $skipped"
    exit 1
fi
mkdir -p build
: >"$log"
echo "browser: install chromium with apt-get ..."
if { add || { apt update && add; }; } && works; then
    echo "browser: done"
    exit
fi
echo "browser: apt-get could not install chromium (see $log); $skipped"
exit 1
