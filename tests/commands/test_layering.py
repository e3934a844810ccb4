"""Imports point down, methods stand apart, and what plans a run loads no torch."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT

METHOD_PACKAGES = ("distdiff", "dreamda", "baselines")
LAYER_0 = set("errors stopping config seeding sharding runs prompts tables texts".split())
LAYER_2 = {"training", "experiment", "generation", "contenders", "training_rates"}
COMMANDS = {
    "expansion.benchmarks.sampling",
    "expansion.benchmarks.training",
}  # in all but their place
# What runs the entry scripts, and therefore stands above them.
STUDY = {
    f"expansion.study.{name}"
    for name in "__main__ config photos choices estimate steps plan talk runner".split()
}
OBJECT_NAME = re.compile(r"([a-z_0-9]+(?:\.[a-z_0-9]+)*):[A-Za-z_]\w*")  # "module:Class"

TORCH_FREE = [
    *(
        f"expansion.{name}"
        for name in (
            "errors stopping config seeding sharding runs prompts sampler checkpoints recipe naming "
            "image_datasets records samples readers list_readers mat_reader array_files array_readers "
            "list_files rows texts "
            "dataset_layouts dataset_configs known_layouts metadata_files file_trees split_folders "
            "class_folders unused_files digits generated_images pixels "
            "check_dataset splits plan experiment writer devices manifest expanded_set tars work_queue "
            "status phases benchmark batch_size content places progress pixel_cache benchmark_training run_lock training_options "
            "tables sampler_config option_parser finished_runs predict identity export merging dataset_card "
            "metrics metrics.predictions metrics.measures metrics.classification metrics.comparison "
            "metrics.coverage metrics.runs metrics.tables curves figures study study.verdict study.classes "
            "study.charts study.sets study.gallery study.cost study.origins study.recognised study.page study.worker study.jobs"
        ).split()
    ),
    *sorted(STUDY),
    "distdiff.config",
    "dreamda.config",
    "dreamda.finetune.config",
    "dreamda.prompts",
    "dreamda.prompts_config",
    "baselines.clip_labels_config",
    "baselines.label_results",
    "baselines.soft_labels_config",
    "expand",
    "train_original",
    "train_expand",
    *(["parse_logs"] if (ROOT / "parse_logs.py").is_file() else []),
]


@cache
def sources() -> dict[str, Path]:
    """Module name -> file, of everything but the tests."""
    files = [*ROOT.glob("*.py")]
    for package in ("expansion", *METHOD_PACKAGES):
        files += (ROOT / package).rglob("*.py")
    names = {".".join(f.relative_to(ROOT).with_suffix("").parts): f for f in files}
    return {name.removesuffix(".__init__"): file for name, file in names.items()}


def imports_of(text: str, module: str = "module") -> set[str]:
    """Names of all modules that the text imports anywhere, or names as "module:Class"."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            match = OBJECT_NAME.fullmatch(node.value)
            found |= {match[1]} if match else set()
    return found


@cache
def own_imports() -> dict[str, set[str]]:
    """Module -> the modules of this project that it imports."""
    return {
        module: {n for n in imports_of(path.read_text(encoding="utf-8"), module) if n in sources()}
        - {module}
        for module, path in sources().items()
    }


def layer(module: str) -> int:
    if module in COMMANDS:
        return 4
    if module in STUDY:
        return 5
    package, _, rest = module.partition(".")
    if package == "expansion":
        part = rest.split(".")[0]
        return 0 if not part or part in LAYER_0 else 2 if part in LAYER_2 else 1
    return 3 if package in METHOD_PACKAGES else 4


def literals(tree: ast.Module) -> list[ast.Constant]:
    """String literals that are no docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in docstrings
    ]


def method_words() -> list[str]:
    stems = {path.stem for path in (ROOT / "baselines").glob("*.py")} - {"__init__", "config"}
    return sorted(
        {*METHOD_PACKAGES, *stems, "gif", "text2img", "diffusion_inversion", "bag_of_tricks"}
    )


def test_imports_are_seen_wherever_they_hide():
    text = (
        "import a.b\nfrom c import d\nfrom . import e\n"
        "if TYPE_CHECKING:\n    from f.g import H\n"
        "def work():\n    import i\n    class C:\n        from j import k\n"
        "REGISTRY = {'x': ('l.m:N', 'no object: at all')}\n"
    )
    expected = {"a.b", "c", "c.d", "p", "p.e", "f.g", "f.g.H", "i", "j", "j.k", "l.m"}
    assert imports_of(text, "p.module") == expected


def test_all_layers_are_found():
    assert {layer(module) for module in sources()} == {0, 1, 2, 3, 4, 5}
    modules = {m.removeprefix("expansion.") for m in sources()}
    assert LAYER_0 | LAYER_2 <= modules
    assert "expansion.common.config" in own_imports()["expansion.common.sharding"]


def test_the_shared_package_lists_its_modules():
    modules = {m.removeprefix("expansion.") for m in sources() if m.startswith("expansion.")}
    text = ast.get_docstring(ast.parse(sources()["expansion"].read_text(encoding="utf-8")))
    lines = text.splitlines()[2:]  # a subject of up to 15 characters, then modules
    listed = " ".join(line[17:] for line in lines).split()
    assert sorted(listed) == sorted(modules)


def test_imports_point_to_the_same_or_a_lower_layer():
    upward = [
        f"{module} (L{layer(module)}) imports {name} (L{layer(name)})"
        for module, names in own_imports().items()
        for name in names
        if layer(name) > layer(module)
    ]
    assert not upward


def test_no_modules_import_each_other_in_a_circle():
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for name in sorted(own_imports()[module]):
                visit(name, (*path, module))
            done.add(module)

    for module in sources():
        visit(module, ())
    assert done == set(sources())


def test_no_method_imports_another():
    crossing = [
        f"{module} imports {name}"
        for module, names in own_imports().items()
        for name in names
        if layer(module) == layer(name) == 3 and module.split(".")[0] != name.split(".")[0]
    ]
    assert not crossing


def test_nobody_imports_an_entry_script():
    scripts = {module for module in sources() if layer(module) == 4}
    assert {"expand", "train_original", "train_expand"} <= scripts
    for module, path in sources().items():
        if module not in COMMANDS | STUDY:
            assert not imports_of(path.read_text(encoding="utf-8"), module) & scripts, module


@pytest.mark.parametrize("word", method_words())
def test_the_shared_package_names_no_method(word):
    end = "(?![a-z])" if len(word) < 5 else ""  # "gift" names no method; ".gif" is a file suffix
    named = re.compile(rf"(?<![.a-z]){word}{end}", re.IGNORECASE)
    found = []
    for module, path in sources().items():
        if not module.startswith("expansion") or module in COMMANDS:
            continue
        text = path.read_text(encoding="utf-8")
        found += [f"{module} imports {n}" for n in imports_of(text, module) if named.search(n)]
        found += [
            f"{path.name}:{node.lineno}: {node.value!r}"
            for node in literals(ast.parse(text))
            if named.search(node.value)
        ]
    assert not found


def test_planning_a_run_loads_no_torch():
    code = (
        "import importlib, json, sys\n"
        "loaded = {}\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    heavy = {'torch', 'diffusers', 'transformers', 'accelerate'} & set(sys.modules)\n"
        "    if heavy:\n"
        "        loaded[name] = sorted(heavy)\n"
        "        break\n"
        "print(json.dumps(loaded))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *TORCH_FREE],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {}
