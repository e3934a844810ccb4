"""Imports point down, methods stand apart, and help and plans load no torch.

Nothing is listed here: floors stand in the docstring of `expansion`, methods are the packages
beside it, and commands are the modules that can be run.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache, cached_property

import pytest

import expand
import train_expand
from tests.conftest import ROOT

SHARED = "expansion"
FLOOR = re.compile(r"^ +(\d+)  (\w+)  +(\S.*)$", re.MULTILINE)  # "    3  data   labelled sets"
OBJECT_NAME = re.compile(r"([a-z_0-9]+(?:\.[a-z_0-9]+)*):[A-Za-z_]\w*")  # "module:Class"
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def imports_of(text: str, package: str = "") -> frozenset[str]:
    """Names of all modules that a text in `package` imports anywhere, or names as an object's."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".") if node.level else []
            base = [*parents[: len(parents) + 1 - node.level], *([node.module] * bool(node.module))]
            found |= {".".join(base), *(".".join([*base, alias.name]) for alias in node.names)}
    return frozenset(found | {OBJECT_NAME.fullmatch(name)[1] for name in objects_of(text)})


def objects_of(text: str) -> set[str]:
    """The literals of a text that name an object of a module."""
    return {value for _, value in literals(text) if OBJECT_NAME.fullmatch(value)}


@cache
def literals(text: str) -> tuple[tuple[int, str], ...]:
    """(line, value) of string literals that are no docstrings."""
    nodes = [*ast.walk(ast.parse(text))]
    first = [node.body[0] for node in nodes if isinstance(node, DOCUMENTED) and node.body]
    docstrings = {id(node.value) for node in first if isinstance(node, ast.Expr)}
    constants = [n for n in nodes if isinstance(n, ast.Constant) and id(n) not in docstrings]
    return tuple((node.lineno, node.value) for node in constants if isinstance(node.value, str))


class House:
    """All code but the tests.

    Args:
        files: Path relative to the project, with "/" -> text.
    """

    def __init__(self, files: Mapping[str, str]):
        self.paths = {path[:-3].removesuffix("/__init__").replace("/", "."): path for path in files}
        self.texts = {module: files[path] for module, path in self.paths.items()}
        packages = {path.split("/")[0] for path in files if path.count("/") == 1}
        self.methods = {name for name in packages if f"{name}/__init__.py" in files} - {SHARED}
        listed = FLOOR.findall(ast.get_docstring(ast.parse(self.texts[SHARED]), clean=False) or "")
        self.floors = {name: int(number) for number, name, _ in listed}
        self.light = {name for _, name, words in listed if "no torch" in words}

    @cached_property
    def imports(self) -> dict[str, frozenset[str]]:
        """Module -> all modules that it imports, of other projects as well."""
        packages = {
            module: module if path.endswith("__init__.py") else module.rpartition(".")[0]
            for module, path in self.paths.items()
        }
        return {module: imports_of(text, packages[module]) for module, text in self.texts.items()}

    @cached_property
    def own_imports(self) -> dict[str, list[str]]:
        """Module -> the other modules of this project that it imports."""
        return {m: sorted(names & set(self.texts) - {m}) for m, names in self.imports.items()}

    def folder(self, module: str) -> str:
        """What decides the floor: a folder of the shared package, "methods", "scripts", or ""."""
        package, _, inner = module.partition(".")
        if package == SHARED:  # a command's older name stands beside the folders, and above them
            inner = inner.split(".")[0]
            return inner if f"{SHARED}/{inner}/__init__.py" in self.paths.values() else ""
        return "methods" if package in self.methods else "scripts"

    def floor(self, module: str) -> float:
        """A larger number is higher up; of what no line of the list speaks, the highest."""
        if module == SHARED:
            return -1
        return self.floors.get(self.folder(module), float("inf"))

    def unlisted_folders(self) -> Iterator[str]:
        """Folders without a floor, floors without a folder, and registered modules of neither."""
        folders = {self.folder(module) for module in self.texts} - {""}
        yield from (f"{SHARED}/__init__.py gives no floor to {f}" for f in folders - {*self.floors})
        yield from (f"{SHARED}/__init__.py names {f}, no folder" for f in {*self.floors} - folders)
        for script in (module for module in self.texts if self.folder(module) == "scripts"):
            for name in objects_of(self.texts[script]):
                if name.split(":")[0] not in self.texts:
                    yield f"{script} registers {name}, which is in no package with an __init__.py"

    def wrong_arrows(self) -> Iterator[str]:
        """Imports that point up or to the side, and those of a method by another."""
        for module, names in self.own_imports.items():
            for name in names:
                inside = self.folder(module) == self.folder(name)
                if inside and self.folder(module) == "methods":
                    if module.split(".")[0] != name.split(".")[0]:
                        yield f"{module} imports another method, {name}"
                elif not inside and self.floor(module) <= self.floor(name):
                    yield f"{module} (floor {self.floor(module)}) imports {name}"
                elif self.folder(module) == self.folder(name) == "scripts":
                    yield f"{module} imports an entry script, {name}"

    def circles(self) -> Iterator[str]:
        """Modules that import each other."""
        done: set[str] = set()

        def visit(module: str, path: tuple[str, ...]) -> Iterator[str]:
            if module in path:
                yield " -> ".join([*path[path.index(module) :], module])
            elif module not in done:
                for name in self.own_imports[module]:
                    yield from visit(name, (*path, module))
                done.add(module)

        for module in self.texts:
            yield from visit(module, ())

    def named_methods(self) -> Iterator[str]:
        """Where the shared package names a method in a text."""
        named = re.compile(rf"(?<![.a-z])({'|'.join(self.methods)})(?![a-z])", re.IGNORECASE)
        for module, text in self.texts.items():
            if module.split(".")[0] == SHARED and self.folder(module) != "benchmarks":
                for line, value in literals(text):
                    if named.search(value):
                        yield f"{self.paths[module]}:{line}: {value!r}"

    def faults(self) -> list[str]:
        return [
            *self.unlisted_folders(),
            *self.wrong_arrows(),
            *self.circles(),
            *self.named_methods(),
        ]


@cache
def files() -> dict[str, str]:
    """Path -> text of this project: its scripts, and its packages but for the tests."""
    packages = [p.parent for p in ROOT.glob("*/__init__.py") if not p.parent.name.startswith(".")]
    found = [*ROOT.glob("*.py"), *(path for p in packages for path in p.rglob("*.py"))]
    return {p.relative_to(ROOT).as_posix(): p.read_text(encoding="utf-8") for p in found}


def faults_with(further: Mapping[str, str]) -> list[str]:
    """Faults of this project with further files: path -> text."""
    packages = {f"{path.split('/')[0]}/__init__.py": "" for path in further if "/" in path}
    return House({**packages, **files(), **further}).faults()


def test_imports_are_seen_wherever_they_hide():
    text = (
        "import a.b\nfrom c import d\nfrom . import e\nfrom ..q import r\n"
        "if TYPE_CHECKING:\n    from f.g import H\n"
        "def work():\n    import i\n    class C:\n        from j import k\n"
        "REGISTRY = {'x': ('l.m:N', 'no object: at all')}\n"
    )
    expected = {"a.b", "c", "c.d", "p.s", "p.s.e", "p.q", "p.q.r"}
    expected |= {"f.g", "f.g.H", "i", "j", "j.k", "l.m"}
    assert imports_of(text, "p.s") == expected


def test_nothing_points_up_sideways_or_in_a_circle():
    house = House(files())
    assert len(house.texts) > 100 and {"distdiff", "dreamda"} <= house.methods
    assert house.floors["common"] < house.floors["methods"] < house.floors["study"]
    assert house.faults() == []


@pytest.mark.parametrize(
    ("further", "words"),
    [
        ({"unheard/a.py": "from dreamda.sampler import DreamDASampler"}, "imports another method"),
        ({"unheard/a.py": "def f():\n    import distdiff.energy"}, "imports another method"),
        ({"unheard/a.py": "import expand"}, "unheard.a (floor 8) imports expand"),
        ({"unheard.py": "import expand"}, "unheard imports an entry script"),
        ({"mine.py": "R = {'m': 'nowhere.sampler:Mine'}"}, "registers nowhere.sampler:Mine"),
        ({"expansion/data/a.py": "from expansion.store import places"}, "data.a (floor 3) imports"),
        ({"expansion/store/a.py": "import expansion.diffusion.samples"}, "store.a (floor 4)"),
        ({"expansion/common/a.py": "import dreamda.config"}, "common.a (floor 0) imports dreamda"),
        ({"expansion/training/a.py": "import train_original"}, "(floor 5) imports train_original"),
        ({"expansion/report/a.py": "import expansion.image_datasets"}, "imports expansion.image_"),
        (
            {"expansion/unheard/__init__.py": "", "expansion/unheard/a.py": ""},
            "gives no floor to unheard",
        ),
        (
            {"expansion/data/a.py": "x = 'as in DistDiff'"},
            "expansion/data/a.py:1: 'as in DistDiff'",
        ),
        (
            {"unheard/a.py": "", "expansion/data/a.py": "x = 'unheard_5x'"},
            "data/a.py:1: 'unheard_5x'",
        ),
        ({"dreamda/a.py": "import dreamda.b", "dreamda/b.py": "from . import a"}, "dreamda.b -> "),
    ],
)
def test_a_new_module_that_looks_the_wrong_way_is_found(further, words):
    assert words in "\n".join(faults_with(further))


def test_a_new_method_that_looks_down_and_at_itself_is_none():
    new = {"unheard/a.py": "import expansion.diffusion.img2img, unheard.b", "unheard/b.py": ""}
    assert faults_with({**new, "expansion/data/a.py": "x = 'unheardof'"}) == []


def methods() -> list[str]:
    """Registered methods, but for those of the rigs."""
    return [name for name, (_, place) in expand.SAMPLERS.items() if not place.startswith("tests.")]


def test_what_the_registries_name_is_a_method_or_shared():
    named = [name for method in methods() for name in expand.SAMPLERS[method]]
    named += [learning.objective for learning in train_expand.OBJECTIVES.values()]
    house = House(files())
    packages = {name.split(":")[0].split(".")[0] for name in named}
    assert SHARED in packages and packages <= house.methods | {SHARED}


RUN = """
import importlib, json, os, runpy, sys
sys.path.insert(0, os.getcwd())
for words in json.loads(sys.argv[1]):
    place, arguments = words[0], words[1:]
    sys.argv = words
    try:
        if not arguments:
            importlib.import_module(place)
        else:
            run = runpy.run_path if place.endswith(".py") else runpy.run_module
            run(place, run_name="__main__")
    except SystemExit as end:
        assert not end.code, words
    loaded = sorted({"torch", "diffusers", "transformers", "accelerate"} & set(sys.modules))
    assert not loaded, f"{words} loads {loaded}"
"""


def loads_no_torch(calls: list[list[str]]) -> None:
    """Assert it of modules that are imported and commands that are run, one after the other."""
    words = [sys.executable, "-c", RUN, json.dumps(calls)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_folders_that_are_to_load_no_torch_load_none():
    house = House(files())
    light = [module for module in house.texts if house.folder(module) in house.light]
    config = [m for m in house.texts if re.search(r"(^|[._])config$", m)]
    assert len(house.light) > 5 and len(config) > 5
    loads_no_torch([[module] for module in [*light, *config]])


def test_help_and_the_plan_of_an_expansion_load_no_torch(make_folder):
    house = House(files())
    runnable = [m for m, text in house.texts.items() if "\n    run_command(" in text]
    assert len(runnable) > 10
    entries = {module: f"{module}.py" for module in runnable if house.folder(module) == "scripts"}
    calls = [[entries.get(module, module), "--help"] for module in runnable]
    calls += [["expand.py", "--method", name, "--help", "all"] for name in methods()]
    calls += [["train_expand.py", "--labels", name, "--help"] for name in train_expand.OBJECTIVES]
    images = {"ant": ["1.png"], "bee": ["1.png"]}
    photos = make_folder("photos", {"train": images, "test": images})
    calls += [["expand.py", "--method", "img2img", "-d", str(photos), "--dry_run"]]
    loads_no_torch(calls)
