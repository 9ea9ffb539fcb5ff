#!/bin/sh
# Bring the environment $VENV to what $LOCK (requirements.lock) says. Safe to run from any state: a stamp holds the
# lock's hash once an install is complete, a marker says that one was begun.
set -eu
if [ -z "${PYTHON:-}" ]; then
  echo "error: no Python 3.11 to 3.13 with venv found; install one, or name it: make PYTHON=/path/to/python" >&2
  exit 2
fi
lock="${LOCK:-requirements.lock}"
hash=$("$PYTHON" -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' "$lock")
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
[ ! -e "$begun" ] || repair="--force-reinstall"  # somebody else's environment: repair it, keep what else is in it
rm -f "$stamp"
: > "$begun"
echo "installing $lock into $VENV (a few minutes, about 6.5 GB)"
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check $repair --requirement "$lock"
rm -f "$begun"
echo "$hash" > "$stamp"
