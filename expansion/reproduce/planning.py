"""The commands of all tables in stages, each piece of work once.

Folders of one scale, below <output_dir>/<scale>:

    expanded/<dataset>/[draw<seed>/]<set>      generated images, with contact_sheet.png
    checkpoint/<dataset>/<arm>/seed<seed>      runs; guides are among them
    embeddings/  prompts/  stand_ins/  benchmarks/

Their names say what makes them, so that equal work of two tables is one folder. Two tables that
would fill one folder by different commands are an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import expand
from expansion.common.config import import_object
from expansion.common.errors import InputError
from expansion.common.files import is_done
from expansion.reproduce.cells import UNLABELED, Arm, Cell, Made, Place, Timing, cells_of
from expansion.reproduce.checks import option_names
from expansion.reproduce.commands import (
    Asked,
    at_true_size,
    main_of,
    study_of,
    with_seed,
)
from expansion.reproduce.nodes import (
    BEFORE,
    EMBEDDINGS,
    EVALUATION,
    FIGURES,
    IMAGES,
    KEPT,
    REAL_RUNS,
    RUNS,
    SELECTED,
    TIMES,
    Node,
    Plan,
    PlanOptions,
    WayPlan,
    is_complete,
)
from expansion.reproduce.papers import Table
from expansion.reproduce.readings import is_evaluated, seconds_of
from expansion.reproduce.records import options_of
from expansion.reproduce.scales import Scale
from expansion.study.config import Arm as StudyArm
from expansion.study.estimate import Work
from expansion.study.steps import Command, Study, expand_commands, option_words
from expansion.study.steps import train_command as study_train_command

GUIDE_FILE = "model_best.pth.tar"  # the epoch that is best on the test images, as in the paper


def plan_tables(
    tables: Sequence[Table], scale: Scale, root: Path, options: PlanOptions, lenient: bool = False
) -> Plan:
    """Plan the work of tables together.

    Args:
        tables: The tables.
        scale: The scale.
        root: Folder of everything.
        options: What the user chose.
        lenient: Whether a table that cannot be planned is left out, with the reason.

    Raises:
        InputError: A table has a fault, or two tables disagree about a folder.
    """
    planner = _Planner(scale, root, options)
    plan = Plan(scale, root, planner.nodes, {}, {})
    for table in tables:
        planner.table = table.name
        try:
            found = cells_of(table, scale, options.datasets)
            plan.cells[table.name] = [(cell, planner.cell(cell, table)) for cell in found]
        except InputError as error:
            if not lenient:
                raise
            plan.problems[table.name] = str(error)
    return plan


class _Planner:
    """Collects the nodes of all tables; `table` is the one that is planned."""

    def __init__(self, scale: Scale, root: Path, options: PlanOptions):
        self.scale, self.root, self.options = scale, root, options
        self.nodes: dict[Path, Node] = {}
        self.table = self.cell_name = ""
        self._asked_by: dict[Path, str] = {}  # node -> the cell that wanted it first
        self._known: dict[tuple[str, int | None], Path] = {}
        self._trainings: dict[str, Command] = {}

    def cell(self, cell: Cell, table: Table) -> dict[str, WayPlan]:
        """Add the work of a cell; returns where its figures come from."""
        self.cell_name = f"{table.name} (row {cell.row}, column {cell.column})"
        seeds = self.scale.seeds(table.seeds)
        lacks = [lack for way in cell.ways.values() if (lack := self._lack(way))]
        if lacks:
            cell.left_out = lacks[0]
            return {}
        return {label: self._way(way, cell.spec.measure, seeds) for label, way in cell.ways.items()}

    def _way(self, way: Arm | Made | Timing, measure: str, seeds: Sequence[int]) -> WayPlan:
        if isinstance(way, Timing):
            return WayPlan((self._timing(way),))
        if isinstance(way, Made):
            draws = seeds if self.scale.file.draw_per_seed else [None]
            return WayPlan(tuple(self._figures(way, draw) for draw in draws))
        return WayPlan(tuple(self._run(way, seed) for seed in seeds))

    def _lack(self, way: Arm | Made | Timing) -> str:
        """What a cell needs and this scale has not; empty if nothing."""
        if self.scale.is_own or isinstance(way, Timing):
            return ""
        made = way if isinstance(way, Made) else way.made
        config_class = import_object(expand.SAMPLERS[made.method][0]) if made else None
        wants_clip = isinstance(way, Arm) and way.labels == "clip"
        wants_clip |= made is not None and bool(
            made.keep or "clip_model" in option_names(config_class)
        )
        stand_ins = self.scale.file.stand_ins
        if wants_clip and "clip" not in stand_ins and not self.options.clip:
            return "needs a CLIP that knows these images: --clip"
        if made and config_class.needs_image_unet and "image_unet" not in stand_ins:
            return "needs a checkpoint that edits these images; there is none at this scale"
        return ""

    def _clip(self, needs: list[Path]) -> str | None:
        """The CLIP that is given, or a stand-in for it; None: the usual one."""
        if self.options.clip or self.scale.is_own:
            return self.options.clip
        return str(self._stand_in("clip", needs))

    # Runs

    def _run(self, arm: Arm, seed: int) -> Path:
        """A run of an arm, with all that it needs."""
        return self._once(arm, seed, self._new_run)

    def _set(self, made: Made, draw: int | None) -> Path:
        """A set, with all that it needs."""
        return self._once(made, draw, self._new_set)

    def _once(self, what: Arm | Made, seed: Any, add: Callable[[Any, Any], Path]) -> Path:
        """What `add` gives; for what was asked before, only the table is noted."""
        key = repr(what), seed
        if key not in self._known:
            self._known[key] = add(what, seed)
        self._note_table(self._known[key])
        return self._known[key]

    def _note_table(self, path: Path) -> None:
        """Note the table for a node and all that it needs."""
        node = self.nodes[path]
        if self.table not in node.tables:
            node.tables.append(self.table)
            for needed in node.needs:
                self._note_table(needed)

    def _new_run(self, arm: Arm, seed: int) -> Path:
        draw = seed if self.scale.file.draw_per_seed else None
        needs, options = [], dict(arm.own)
        labels = options.pop("labels", "seed")
        key = None
        if arm.made is not None:
            key = arm.made.key
            needs.append(self._set(arm.made, draw))
            if arm.made.keep:
                needs.append(self._kept(arm.made, draw))
                options["selection"] = str(needs[-1])
        if options.get("unlabeled_dir") == UNLABELED:
            options["unlabeled_dir"] = self._unlabeled(arm.place, needs)
        if labels == "clip":
            options["clip_model"] = self._clip(needs)
        tag = arm.tag(self.scale.file.train or {})
        options |= {"tag": tag} if tag else {}
        study = self._study(arm.place, draw, Asked(arm.made, seeds=(seed,)))
        key_of_arm = repr((arm, draw))
        if key_of_arm not in self._trainings:
            command = study_train_command(study, StudyArm(key, labels, options))
            self._trainings[key_of_arm] = at_true_size(command, arm)
        command = with_seed(self._trainings[key_of_arm], seed)
        stage = REAL_RUNS if arm.made is None else RUNS
        folder = command.folders[0]
        return self._add(folder, (command,), stage, needs, lambda: is_done(folder))

    def _first_seed(self, draw: int | None) -> int:
        """The seed of the one run on real images that a set or its figures need."""
        return self.scale.seeds((1,))[0] if draw is None else draw

    def _unlabeled(self, place: Place, needs: list[Path]) -> str:
        if not self.scale.is_own:
            return str(self._stand_in("unlabeled", needs))
        return str(Path(self.options.data_dir, place.dataset, UNLABELED))

    # Sets

    def _new_set(self, made: Made, draw: int | None) -> Path:
        needs: list[Path] = []
        extra: dict[str, Any] = {}
        if made.prompts:
            needs.append(self._prompts(made))
            extra["prompts_file"] = str(needs[-1])
        if made.trained_by:
            needs.append(self._embeddings(made, draw))
            extra["embeddings"] = str(needs[-1])
        config_class = import_object(expand.SAMPLERS[made.method][0])
        if "clip_model" in option_names(config_class):
            extra["clip_model"] = self._clip(needs)
        if not self.scale.is_own and config_class.needs_image_unet:
            model = self._stand_in("image_unet", needs)
            extra["pretrained_model_name_or_path"] = str(model)
        guide = None
        if made.guide is not None:
            run = self._run(made.guide, self._first_seed(draw))
            needs.append(run)
            guide = str(run / GUIDE_FILE)
        study = self._study(made.place, draw, Asked(made, guide, extra))
        commands = tuple(expand_commands(study, made.key, self.options.num_shards))
        folder = study.set_folder(made.key)
        return self._add(folder, commands, IMAGES, needs, lambda: is_complete(folder, made))

    def _embeddings(self, made: Made, draw: int | None) -> Path:
        """What a method learns of the real images before it makes any."""
        config_class = import_object(expand.SAMPLERS[made.method][0])
        module = f"{config_class.__module__.split('.')[0]}.{made.trained_by}.__main__"
        draws = "" if draw is None else f"draw{draw}"
        words = [*self._place_words(made.place, draw), *option_words(made.training)]
        name = "_".join([str(made.trained_by), *map(str, made.training.values())])
        folder = self.root / "embeddings" / made.place.dataset / draws / name
        words += ["--output_dir", str(folder)]
        facts = made.place.facts
        parsed = import_object(f"{module}:parse")(words)[0]
        rows = facts.classes * parsed.unet_rows(math.ceil(facts.real / facts.classes))
        command = Command(name, main_of(module), tuple(words), work=Work(rows=rows))
        finished = folder / "finished"  # no such file: the command sees by itself what is left
        return self._add(folder, (command,), EMBEDDINGS, [], finished.exists)

    def _prompts(self, made: Made) -> Path:
        preset = [] if made.prompts == "scenes" else ["--preset", str(made.prompts)]
        name = f"{made.place.dataset}-{made.prompts}.json"
        path = self.root / "prompts" / name
        words = ["-d", made.place.dataset, *self._data_dir(), "--output", str(path), *preset]
        writer = self.scale.file.prompt_writer
        command = Command(f"prompts {name}", main_of(f"{writer}.__main__"), tuple(words))
        return self._add(path, (command,), BEFORE, [], path.is_file)

    def _stand_in(self, kind: str, needs: list[Path]) -> Path:
        """A stand-in, which is added to `needs`."""
        folder = self.root / "stand_ins" / kind
        number = [str(self.scale.file.num_unlabeled)] if kind == "unlabeled" else []
        words = (kind, str(folder), *number)
        command = Command(f"stand-in {kind}", main_of("expansion.reproduce.stand_ins"), words)
        needs.append(self._add(folder, (command,), BEFORE, [], folder.is_dir))
        return folder

    # Figures of sets, and choices among their images

    def _figures(self, made: Made, draw: int | None) -> Path:
        """The papers' figures of a set; returns its folder."""
        needs = [self._set(made, draw)]
        features = f"inception:{self.options.inception}"
        if not self.scale.is_own:
            plain = Arm(made.place, self.scale.training({}, 0, 0)[0])
            needs.append(self._run(plain, self._first_seed(draw)))
            features = f"run:{needs[-1]}"
        whole = made.num_images
        count = min(self.scale.file.paper_images or whole, whole)
        self._evaluation(made, needs, features, ["--paper_images", str(count)], count)
        return needs[0]

    def _kept(self, made: Made, draw: int | None) -> Path:
        """The file of the images that a rule keeps, by what a CLIP takes them for."""
        needs = [self._set(made, draw)]
        clip = self._clip(needs) or "openai/clip-vit-base-patch32"
        evaluation = self._evaluation(made, needs, f"clip:{clip}", [], None)
        path = needs[0] / SELECTED
        words = ["-d", made.place.dataset, *self._data_dir(), "--exp", str(needs[0])]
        words += ["--at_least", str(made.keep)]
        command = Command(f"kept of {made.name}", main_of("expansion.filter"), tuple(words))
        return self._add(path, (command,), KEPT, [*needs, evaluation], path.is_file)

    def _evaluation(
        self,
        made: Made,
        needs: Sequence[Path],
        features: str,
        further: Sequence[str],
        count: int | None,
    ) -> Path:
        folder = needs[0]
        words = ["-d", made.place.dataset, *self._data_dir(), "--exp", str(folder)]
        words += ["--features", features, *further, "--cache_dir", str(self.root / "cache")]
        words += ["--checkpoint_dir", str(self.root / "checkpoint")]
        path = folder / EVALUATION
        command = Command(f"figures of {made.name}", main_of("expansion.evaluate"), tuple(words))
        return self._add(path, (command,), FIGURES, needs, lambda: is_evaluated(path, count))

    def _timing(self, timing: Timing) -> Path:
        steps = timing.options.get("num_inference_steps")
        name = f"{timing.method}{'' if steps is None else f'_{steps}steps'}.json"
        path = self.root / "benchmarks" / name
        words = ["--methods", timing.method, *option_words(timing.options), "--output", str(path)]
        command = Command(f"time of {timing.method}", main_of("expansion.benchmark"), tuple(words))
        return self._add(path, (command,), TIMES, [], lambda: seconds_of(path) is not None)

    # What they share

    def _add(
        self,
        path: Path,
        commands: tuple[Command, ...],
        stage: int,
        needs: Iterable[Path],
        is_finished: Callable[[], bool],
    ) -> Path:
        """Add a node, unless it is there; returns its path.

        Raises:
            InputError: It is there, and other commands fill it.
        """
        node = Node(path, commands, stage, tuple(needs), is_finished)
        known = self.nodes.get(path)
        if known is None:
            known = self.nodes[path] = node
            self._asked_by[path] = self.cell_name
        if [c.arguments for c in commands] != [c.arguments for c in known.commands]:
            its, mine = (options_of(each, self.root) for each in (known, node))
            differing = [name for name in {**its, **mine} if its.get(name) != mine.get(name)]
            values = (f"{n} '{its.get(n, '')}' and '{mine.get(n, '')}'" for n in differing)
            raise InputError(
                f"{self._asked_by[path]} and {self.cell_name} disagree about {path}: "
                f"{', '.join(values)}; make them agree, or give the options other values"
            )
        if self.table not in known.tables:
            known.tables.append(self.table)
        return path

    def _study(self, place: Place, draw: int | None, asked: Asked) -> Study:
        words = self._place_words(place, draw)
        return study_of(place, words, draw, asked, self.root, self.scale.file.resolution)

    def _place_words(self, place: Place, draw: int | None) -> list[str]:
        words = ["-d", place.dataset, *self._data_dir(), *option_words(place.options)]
        return words if draw is None else [*words, "--subset_seed", str(draw)]

    def _data_dir(self) -> list[str]:
        default = self.options.data_dir == PlanOptions.data_dir
        return [] if default else ["--data_dir", self.options.data_dir]
