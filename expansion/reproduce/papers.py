"""What `configs/papers` says: the tables of a paper, their cells and the published values.

    configs/papers/<scale>.yaml           tiny, small, paper: see `scales`
    configs/papers/<paper>/common.yaml    datasets, sets and settings that its tables share
    configs/papers/<paper>/<table>.yaml   one table, or one figure with numbers

A cell is what `cells`, its row and its column say, of which later ones win. `options` are those of
expand.py, `train` and `guide` those of the training commands; both are merged key by key.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from expansion.common.config import CONFIG_DIR, Source, compose, load_yaml
from expansion.common.errors import InputError, brief, require, unknown_name
from expansion.reproduce.schema import (
    REAL,
    CellSpec,
    DatasetFacts,
    Other,
    PaperFile,
    SetSpec,
    TableFile,
)

FOLDER = CONFIG_DIR / "papers"
COMMON = "common"
MERGED = ("options", "train", "guide")  # of a cell: key by key
PUBLISHED = re.compile(r"(\d+(?:\.\d+)?)(?: \+- (\d+(?:\.\d+)?))?")


@dataclass(frozen=True)
class Published:
    """A published value and its deviation, if that was published too."""

    value: float
    deviation: float | None = None


@dataclass(frozen=True)
class Paper:
    """A paper: its name, settings and datasets."""

    name: str
    file: PaperFile
    place: str

    @cached_property
    def datasets(self) -> dict[str, DatasetFacts]:
        given = _mapping(self.file.datasets or {}, f"{self.place}: datasets")
        return {
            name: _composed(DatasetFacts, values, f"{self.place}: datasets: {name}")
            for name, values in given.items()
        }

    def set_spec(self, name: str, dataset: str) -> tuple[SetSpec, dict[str, Any]]:
        """How a set is made of a dataset, and the options of expand.py for it."""
        given = _mapping(self.file.sets or {}, f"{self.place}: sets")
        where = f"{self.place}: sets: {name}"
        own = {**_mapping(given[name], where)}
        facts = self.datasets[dataset]
        of_dataset = (facts.sets or {}).get(name, {})
        merged = {**(self.file.expand or {}), **own, **_mapping(of_dataset, where)}
        keys = {field.name for field in dataclasses.fields(SetSpec)}
        spec = _composed(SetSpec, {k: v for k, v in merged.items() if k in keys}, where)
        return spec, {k: v for k, v in merged.items() if k not in keys}


@dataclass(frozen=True)
class Table:
    """A table of a paper.

    Attributes:
        name: As on the command line, such as "distdiff/table4".
        paper: Whose it is.
        file: What its file says.
        place: Its file.
    """

    name: str
    paper: Paper
    file: TableFile
    place: str

    @property
    def row_names(self) -> list[str]:
        return [str(row["name"]) for row in self.file.rows]

    @property
    def column_names(self) -> list[str]:
        return [str(column["name"]) for column in self.file.columns]

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.file.seeds or self.paper.file.seeds

    @cached_property
    def specs(self) -> dict[tuple[str, str], CellSpec]:
        """(row, column) -> what the cell is; cells that the table leaves out are absent."""
        found = {}
        cells = _mapping(self.file.cells or {}, f"{self.place}: cells")
        for place, parts in self._parts():
            where = f"{self.place}: row {place[0]}, column {place[1]}"
            spec = _composed(CellSpec, _merged([cells, *parts], where), where)
            self._check(spec, where)
            found[place] = spec
        return found

    @cached_property
    def own(self) -> dict[tuple[str, str], dict[str, Any]]:
        """(row, column) -> what these two say; of a table without sets, what `cells` says too."""
        without_sets = all(spec.set == REAL for spec in self.specs.values())
        common = [self.file.cells or {}] if without_sets else []
        return {place: _merged([*common, *parts], "") for place, parts in self._parts()}

    @cached_property
    def published(self) -> dict[tuple[str, str], Published]:
        """(row, column) -> the published value, where there is one."""
        where = f"{self.place}: published"
        given = _mapping(self.file.published or {}, where)
        found = {}
        for key, values in given.items():
            name = str(key)
            if name not in self.row_names:
                raise InputError(f"{where}: {unknown_name('row', name, self.row_names)}")
            require(
                isinstance(values, list) and len(values) == len(self.file.columns),
                f"{where}: {name}: give a list of {len(self.file.columns)} values, one for each "
                "column; null where the paper has none",
            )
            for column, value in zip(self.column_names, values, strict=True):
                if value is not None:
                    found[name, column] = _published(value, f"{where}: {name}")
        return found

    def _parts(self) -> Iterator[tuple[tuple[str, str], list[dict[str, Any]]]]:
        """The place of each cell, and what its row and its column say."""
        for row, column in self._pairs():
            parts = [{k: v for k, v in line.items() if k != "name"} for line in (row, column)]
            yield (str(row["name"]), str(column["name"])), parts

    def _pairs(self) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
        for row in self.file.rows:
            wanted = row.get("columns") or self.column_names
            for name in wanted:
                if name not in self.column_names:
                    where = f"{self.place}: row {row['name']}"
                    raise InputError(f"{where}: {unknown_name('column', name, self.column_names)}")
            for column in self.file.columns:
                if str(column["name"]) in wanted:
                    yield row, column

    def _check(self, spec: CellSpec, where: str) -> None:
        """Raise InputError for a cell whose dataset or set the paper's file does not know."""
        if spec.dataset not in self.paper.datasets:
            known = list(self.paper.datasets)
            raise InputError(f"{where}: {unknown_name('dataset', spec.dataset, known)}")
        sets = [REAL, *(self.paper.file.sets or {})]
        if spec.set not in sets:
            raise InputError(f"{where}: {unknown_name('set', spec.set, sets)}")
        best_of = spec.best_of or {}
        require(
            not best_of
            or (len(best_of) == 1 and all(isinstance(v, list) and v for v in best_of.values())),
            f"{where}: best_of: give one option and a list of its values",
        )


def table_names() -> list[str]:
    """Names of all tables, as on the command line: those of a paper in the order of its items."""
    found = [
        f"{path.parent.name}/{path.stem}" for path in FOLDER.glob("*/*.yaml") if path.stem != COMMON
    ]
    return sorted(found, key=lambda name: (name.split("/")[0], _order(name.split("/")[1])))


def read_papers() -> dict[str, Paper]:
    """All papers, by name."""
    paths = sorted(FOLDER.glob(f"*/{COMMON}.yaml"))
    return {path.parent.name: _read_paper(path) for path in paths}


def read_tables(names: Sequence[str]) -> list[Table]:
    """The tables of these names; "all" and the name of a paper stand for several.

    Raises:
        InputError: There is no such table, or a file has faults; names file, key and remedy.
    """
    known, papers = table_names(), read_papers()
    chosen: list[str] = []
    for name in names:
        several = known if name == "all" else [k for k in known if k.split("/")[0] == name]
        if name not in known and not several:
            raise unknown_name("table", name, [*known, *papers, "all", "list"])
        chosen += [name] if name in known else several
    return [_read_table(name, papers) for name in dict.fromkeys(chosen)]


def others(papers: Mapping[str, Paper]) -> list[tuple[str, Other]]:
    """The items of each paper that are no table of numbers: (paper, item)."""
    return [
        (paper.name, _composed(Other, values, f"{paper.place}: others"))
        for paper in papers.values()
        for values in paper.file.others
    ]


def _read_paper(path: Path) -> Paper:
    return Paper(path.parent.name, composed(PaperFile, _source(path)), _shown(path))


def _read_table(name: str, papers: Mapping[str, Paper]) -> Table:
    path = FOLDER / f"{name}.yaml"
    paper = name.split("/")[0]
    require(paper in papers, f"{path}: {path.parent / COMMON}.yaml is missing")
    file = composed(TableFile, _source(path))
    table = Table(name, papers[paper], file, _shown(path))
    for key in ("rows", "columns"):
        lines = getattr(file, key)
        require(bool(lines), f"{table.place}: {key}: give one or more")
        names = [line.get("name") for line in lines]
        require(None not in names, f"{table.place}: {key}: one has no name")
        twice = sorted({str(n) for n in names if names.count(n) > 1})
        require(not twice, f"{table.place}: {key}: {', '.join(twice)} occurs twice")
    reference = file.reference
    if reference is not None and reference not in table.row_names:
        raise InputError(
            f"{table.place}: reference: {unknown_name('row', reference, table.row_names)}"
        )
    table.specs, table.published  # noqa: B018  both are checked when they are made
    return table


def _merged(parts: Sequence[Mapping[str, Any]], where: str) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            if key in MERGED:
                value = {**merged.get(key, {}), **_mapping(value, f"{where}: {key}")}
            merged[key] = value
    return merged


def _published(value: Any, where: str) -> Published:
    match = PUBLISHED.fullmatch(str(value))
    if match is None:
        raise InputError(f"{where}: {brief(value)}: give a number, or '83.09 +- 0.11'")
    return Published(float(match[1]), float(match[2]) if match[2] else None)


def composed(config_class: type, source: Source) -> Any:
    """The settings of a class that a source holds; an error names the source."""
    try:
        return compose([config_class], [source])[0]
    except InputError as error:
        raise placed(error, source.name) from error


def placed(error: InputError, where: str) -> InputError:
    """The same error with its place in front, unless it names that."""
    text = str(error)
    return InputError(text if where in text else f"{where}: {text}")


def _composed(config_class: type, values: Any, where: str) -> Any:
    return composed(config_class, Source(_mapping(values, where), where))


def _mapping(values: Any, where: str) -> Mapping[str, Any]:
    require(isinstance(values, dict), f"{where}: expected 'key: value', got {brief(values)}")
    return values


def _source(path: Path) -> Source:
    return dataclasses.replace(load_yaml(path), name=_shown(path))


def _shown(path: Path) -> str:
    return path.relative_to(CONFIG_DIR.parent).as_posix()


def _order(stem: str) -> tuple[str, int, str]:
    match = re.fullmatch(r"([a-z]+)(\d*)(.*)", stem)
    kind, number, rest = match.groups() if match else (stem, "", "")
    return ({"table": "0", "fig": "1"}.get(kind, "2"), int(number or 0), kind + rest)
