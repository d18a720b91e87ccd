#!/bin/sh
# Installs what the test suite talks to: brokers, browsers and independent protocol stacks.
# Safe to run again and quick when all is there. Without root, or without npm, the tests
# that need a missing peer are skipped and say so.
set -eu
here=$(cd "$(dirname "$0")" && pwd)

missing=""
command -v chromium >/dev/null || missing="$missing chromium"
command -v mosquitto >/dev/null || [ -x /usr/sbin/mosquitto ] || missing="$missing mosquitto"
command -v mbpoll >/dev/null || missing="$missing mbpoll"
command -v cc >/dev/null || missing="$missing gcc libc6-dev"
command -v npm >/dev/null || missing="$missing nodejs npm"
[ -e /usr/include/modbus/modbus.h ] || missing="$missing libmodbus-dev"
[ -d /usr/share/fonts/opentype/noto ] || missing="$missing fonts-noto-cjk"
if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -q && apt-get install -qy --no-install-recommends $missing ||
            echo "peers: could not install:$missing" >&2
    else
        echo "peers: not root, so these stay missing:$missing" >&2
    fi
fi

stamp="$here/node_modules/.installed"
if command -v npm >/dev/null; then
    if ! cmp -s "$here/package.json" "$stamp"; then
        npm install --prefix "$here" --package-lock=false --no-audit --no-fund --loglevel=error &&
            cp "$here/package.json" "$stamp" ||
            echo "peers: npm install failed" >&2
    fi
else
    echo "peers: no npm, so the Node peers stay missing" >&2
fi
