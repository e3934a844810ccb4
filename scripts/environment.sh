# Sourced by other scripts: sets PYTHON, unless it is set, to an interpreter that satisfies the requirements file $REQUIREMENTS.
# That is the running environment if it does, else .venv, which is made on first use (minutes, about 6 GB).
REQUIREMENTS=${REQUIREMENTS:-requirements.txt}

satisfied() {
    cat "$REQUIREMENTS" requirements.txt | "$1" -c '
import sys
from importlib.metadata import version
from packaging.requirements import Requirement
for line in map(str.strip, sys.stdin):
    if line and not line.startswith("-r"):
        requirement = Requirement(line)
        if version(requirement.name) not in requirement.specifier:
            sys.exit(1)' 2>/dev/null
}

if [ -n "${PYTHON:-}" ]; then
    : # whatever the caller wants
elif command -v python >/dev/null && satisfied python; then
    PYTHON=python
else
    PYTHON=.venv/bin/python
    if ! { [ -x "$PYTHON" ] && satisfied "$PYTHON"; }; then
        echo "Installing $REQUIREMENTS into .venv (once; several minutes)"
        python3 -m venv .venv
        "$PYTHON" -m pip install --quiet --requirement "$REQUIREMENTS"
    fi
fi
export PYTHON
