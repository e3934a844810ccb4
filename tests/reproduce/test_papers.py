"""The files of configs/papers: what they hold, and what a faulty one is answered."""

from __future__ import annotations

import pytest
import yaml

from expansion.common.errors import InputError
from expansion.reproduce import papers
from expansion.reproduce.__main__ import main
from expansion.reproduce.nodes import Plan, PlanOptions
from expansion.reproduce.papers import read_tables, table_names
from expansion.reproduce.planning import plan_tables
from expansion.reproduce.scales import Scale, ScaleFile, read_scale

# What must be there before Table 16 of the paper can be planned.


@pytest.fixture
def own_papers(tmp_path, monkeypatch):
    """Function that writes tables of a small paper, of which the files are the only ones."""
    common = {
        "title": "A paper",
        "datasets": {"digits": {"classes": 10, "real": 200, "test": 600}},
        "sets": {"SD": {"method": "img2img"}},
    }

    def write(**tables: dict) -> None:
        folder = tmp_path / "configs" / "papers" / "paper"
        folder.mkdir(parents=True)
        for name, content in {"common": common, **tables}.items():
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
        monkeypatch.setattr(papers, "FOLDER", folder.parent)
        monkeypatch.setattr(papers, "CONFIG_DIR", folder.parents[1])

    return write


def small_table(**changes) -> dict:
    """A table with one cell, and some of its keys otherwise."""
    cells = {"dataset": "digits", "set": "SD"}
    return {"cells": cells, "rows": [{"name": "SD"}], "columns": [{"name": "a"}], **changes}


def planned(tables: list, tmp_path, scale: str = "tiny", **options) -> Plan:
    return plan_tables(tables, read_scale(scale), tmp_path, PlanOptions(**options))


def test_a_list_on_a_fresh_clone_shows_every_table_and_figure_and_none_is_missing(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)  # without data
    assert main(["list"]) == 0
    parts = capsys.readouterr().out.split("\n\n")
    lines = {part.splitlines()[0]: part.splitlines()[2:] for part in parts[:2]}
    wanted = {
        "DistDiff": [
            *(f"Table {n}" for n in range(1, 17)), *(f"Fig. {n}" for n in range(1, 10)),
            "sec. 4.4",
        ],
        "DreamDA": [
            *(f"Table {n}" for n in range(1, 9)), "Table 3 (pretrained)",
            *(f"Fig. {n}" for n in range(1, 4)), "sec. 5.1", "cost paragraph",
        ],
    }  # fmt: skip
    for paper, items in wanted.items():
        for item in items:
            assert any(line.startswith(f"{item}  ") for line in lines[paper]), item
    problems = {line.split("  ")[1].strip() for part in lines.values() for line in part
                if "cannot be planned" in line}  # fmt: skip
    assert not problems
    assert "missing" not in parts[0] + parts[1]


def test_published_values_are_those_of_the_papers():
    """Some of each paper, as its text has them."""
    tables = {table.name: table.published for table in read_tables(["all"])}
    both = tables["distdiff/table4"]["p_c and p_g", "accuracy"]
    assert (both.value, both.deviation) == (83.09, 0.11)
    assert tables["distdiff/table1"]["CutMix", "+ DistDiff 5x"].value == 85.27
    assert tables["distdiff/table11"]["0.1", "accuracy"].value == 82.49
    assert tables["dreamda/table3"]["DreamDA", "Pets 30x"].value == 86.5
    assert tables["dreamda/table6"]["SD with descriptions", "AMST"].value == 80.9
    assert tables["dreamda/table1"]["encoder", "accuracy"].value == 44.2


def test_every_setting_of_every_table_is_accepted_at_the_scale_of_digits(tmp_path):
    tables = read_tables(["all"])
    plan = planned(tables, tmp_path)
    assert set(plan.cells) == set(table_names())
    assert sum(len(cells) for cells in plan.cells.values()) > 300


def test_work_that_tables_share_is_planned_once(tmp_path):
    one, other = read_tables(["distdiff/table3", "distdiff/table6"])
    apart = [planned([table], tmp_path).nodes for table in (one, other)]
    together = planned([one, other], tmp_path).nodes
    shared = set(apart[0]) & set(apart[1])
    assert shared and len(together) == len(apart[0]) + len(apart[1]) - len(shared)
    assert all(together[path].tables == [one.name, other.name] for path in shared)
    plan = planned([one, other], tmp_path)
    assert {node.path for node in plan.nodes_of(other.name)} == set(apart[1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rowz": []}, "configs/papers/paper/mine.yaml: unknown key 'rowz'; did you mean 'rows'?"),
        ({"columns": [{"name": "a", "measur": "fid"}]}, "'measur'; did you mean 'measure'?"),
        ({"columns": [{"name": "a", "measure": "fids"}]}, "'fids' is not one of accuracy, fid"),
        ({"rows": [{"name": "x", "set": "SDs"}]}, "unknown set 'SDs'; did you mean 'SD'?"),
        ({"rows": [{"name": "x", "dataset": "digit"}]}, "unknown dataset 'digit'; did you mean"),
        ({"rows": [{"name": "x", "options": {"strenght": 1}}]}, "did you mean 'strength'?"),
        ({"rows": [{"name": "x", "train": {"augmen": "mixup"}}]}, "did you mean 'augment'?"),
        ({"rows": [{"name": "x"}, {"name": "x"}]}, "rows: x occurs twice"),
        ({"rows": [{"name": "x", "columns": ["b"]}]}, "row x: unknown column 'b'"),
        ({"published": {"SDs": [1]}}, "unknown row 'SDs'; did you mean 'SD'?"),
        ({"published": {"SD": [1, 2]}}, "published: SD: give a list of 1 values"),
        ({"published": {"SD": ["about 5"]}}, "'about 5': give a number, or '83.09 +- 0.11'"),
        ({"reference": "SDs"}, "reference: unknown row 'SDs'; did you mean 'SD'?"),
        ({"seeds": [1, 1, 2]}, "mine.yaml: seeds 1 1 2: one occurs twice"),
        ({"rows": [{"name": "x", "images": 0}]}, "row x, column a: images 0: give 1 or more"),
        ({"rows": [{"name": "x", "options": {"strength": 3.0}}]}, "row x, column a: strength 3.0"),
        ({"rows": [{"name": "x", "train": {"arch": "resnet5"}}]}, "row x, column a: unknown arch"),
        (
            {"rows": [{"name": "x", "train": {"max_variants": 7}}]},
            "row x, column a: train: max_variants 7 of 5 images of each real one",
        ),
        ({"rows": [{"name": "x", "guide": {"lr": 0.1}}]}, "guide: no classifier guides img2img"),
        (
            {"columns": [{"name": "a", "measure": "seconds", "options": {"strength": 0.3}}]},
            "column a: options: of these, a timing takes num_inference_steps alone; leave out str",
        ),
    ],
)
def test_a_fault_in_a_file_is_named_with_its_place_and_the_nearest_name(
    change, words, own_papers, tmp_path
):
    own_papers(mine=small_table(**change))
    with pytest.raises(InputError) as error:
        planned(read_tables(["all"]), tmp_path)
    assert words in str(error.value) and "mine.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"options": {"strength": 0.3, "nonsense": 3}, "images": 20}, "images, options: is for a"),
        ({"best_of": {"noise_scale": [1, 2]}}, "best_of: is for a set; name one"),
        ({"guide": {"lr": 0.1}}, "guide: is for a set; name one"),
        ({"measure": "seconds"}, "seconds: is for a set; name one"),
        ({"train": {"labels": "amst"}}, "train: labels: training on real images has no such"),
        ({"train": {"max_variants": 2}}, "train: max_variants: training on real images has no"),
    ],
)
def test_what_real_images_alone_have_no_use_for_is_refused_in_a_row_and_in_a_column(
    row, words, own_papers, tmp_path
):
    """Elsewhere the cell would be the plain one, under a name that promises something else."""
    sets = [{"name": "SD", "set": "SD", "train": {}}, {"name": "x"}]
    own_papers(
        row=small_table(cells={"dataset": "digits"}, rows=[sets[0], {"name": "x", **row}]),
        column=small_table(
            cells={"dataset": "digits"}, rows=sets[1:], columns=[{"name": "a", **row}]
        ),
        cells=small_table(cells={"dataset": "digits", **row}, rows=sets[1:]),
    )
    for table in read_tables(["all"]):
        with pytest.raises(InputError) as error:
            planned([table], tmp_path)
        assert f"{table.name}.yaml: row x, column a: {words}" in str(error.value)


def test_what_all_cells_say_of_their_sets_is_left_out_for_real_images_alone(own_papers, tmp_path):
    options = {"strength": 0.3}
    rows = [{"name": "SD", "set": "SD"}, {"name": "Original"}]
    cells = {"dataset": "digits", "options": options, "best_of": {"guidance_scale": [1, 2]}}
    own_papers(mine=small_table(cells=cells, rows=rows))
    plan = planned(read_tables(["all"]), tmp_path, "small")
    (_, sd), (_, real) = plan.cells["paper/mine"]
    assert list(sd) == ["guidance_scale 1", "guidance_scale 2"] and list(real) == [""]
    assert all("strength0.3" in str(way.sources[0]) for way in sd.values())


def test_an_unknown_table_is_answered_with_a_close_one():
    with pytest.raises(InputError, match="unknown table 'distdif/table3'; did you mean 'distdiff/"):
        read_tables(["distdif/table3"])


def test_two_tables_that_disagree_about_a_folder_are_both_named(own_papers, tmp_path):
    """Two files of the same name are told apart by nothing in the folder's name."""
    tables = {
        name: small_table(rows=[{"name": "SD", "options": {"prompts_file": f"{name}/digits.json"}}])
        for name in ("one", "other")
    }
    own_papers(**tables)
    as_it_is = Scale("paper", ScaleFile())  # keeps all options
    with pytest.raises(InputError) as error:
        plan_tables(read_tables(["all"]), as_it_is, tmp_path, PlanOptions())
    cell = "(row SD, column a)"
    assert f"paper/one {cell} and paper/other {cell} disagree about" in str(error.value)
    assert "prompts_file 'one/digits.json' and 'other/digits.json'; make" in str(error.value)


def test_cells_that_need_what_a_scale_has_not_are_left_out_with_the_reason(tmp_path):
    (table,) = read_tables(["dreamda/table8"])
    reasons = {}
    for clip in (None, "a_clip"):
        plan = planned([table], tmp_path, "small", clip=clip)
        reasons[clip] = {cell.row: cell.left_out for cell, _ in plan.cells[table.name]}
    row = "CLIP's pseudo-labels"
    assert "needs a CLIP" in reasons[None].pop(row) and not any(reasons[None].values())
    assert not any(reasons["a_clip"].values())
    with_clip = [c for node in plan.nodes.values() for c in node.commands if "a_clip" in c.plain]
    assert len(with_clip) == 5  # a run of each seed
