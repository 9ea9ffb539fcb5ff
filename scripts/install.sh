#!/bin/sh
# Bring the environment $VENV to what requirements.lock says. Safe to run from any state: a stamp holds the
# lock's hash once an install is complete, a marker says that one was begun.
set -eu
if [ -z "${PYTHON:-}" ]; then
  echo "error: no Python 3.11 to 3.13 with venv found; install one, or name it: make PYTHON=/path/to/python" >&2
  exit 2
fi
hash=$("$PYTHON" -c 'import hashlib; print(hashlib.sha256(open("requirements.lock", "rb").read()).hexdigest())')
stamp="$VENV/.headstart-lock"
begun="$VENV/.headstart-begun"
ours="$VENV/.headstart-ours"
if [ "$(cat "$stamp" 2>/dev/null || true)" = "$hash" ] && "$VENV/bin/python" -c '' 2>/dev/null; then
  exit 0
fi
if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1 || { [ -e "$begun" ] && [ -e "$ours" ]; }; then
  # nothing there, or an install of ours was cut off: packages may be half written, so begin afresh
  echo "making the environment $VENV"
  "$PYTHON" -m venv --clear "$VENV"
  : > "$ours"
fi
repair=""
[ ! -e "$begun" ] || repair="--force-reinstall"  # somebody else's environment: mend it, keep what else is in it
rm -f "$stamp"
: > "$begun"
echo "installing requirements.lock into $VENV (a few minutes, about 6.5 GB)"
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check $repair --requirement requirements.lock
rm -f "$begun"
echo "$hash" > "$stamp"
