# Sourced by demo.sh and test.sh: sets PYTHON to an interpreter that satisfies requirements.txt.
# That is the running environment if it does, else .venv, which is made on first use (minutes, about 6 GB).

satisfied() {
    "$1" - requirements.txt 2>/dev/null <<'PY'
import sys
from importlib.metadata import version
from packaging.requirements import Requirement
for line in filter(None, map(str.strip, open(sys.argv[1]))):
    requirement = Requirement(line)
    if version(requirement.name) not in requirement.specifier:
        sys.exit(1)
PY
}

if command -v python >/dev/null && satisfied python; then
    PYTHON=python
else
    PYTHON=.venv/bin/python
    if ! { [ -x "$PYTHON" ] && satisfied "$PYTHON"; }; then
        echo "Installing requirements.txt into .venv (once; several minutes)"
        python3 -m venv .venv
        "$PYTHON" -m pip install --quiet --requirement requirements.txt
    fi
fi
export PYTHON
