"""The answer to "did generated images help?" in sentences, from two comparisons of every arm.

Every arm is compared with real images alone, and with the strongest arm without generated images
(often real images with RandAugment), which is what generated images have to compete with.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from expansion.classifier.recipe import AUGMENTATIONS
from expansion.metrics.classification import METRICS
from expansion.metrics.comparison import CANNOT_TELL, Gain
from expansion.metrics.run_folder import ORIGINAL
from expansion.metrics.runs import Comparison, Row

REAL_ALONE = "real images alone"
NO_DIFFERENCE = 0.05  # points: what is shown as 0.0
FALSE_ALARM = 0.025  # chance that an arm equal to its base is called better


@dataclass(eq=False)
class Arm:
    """A row of a table, with what the page says about it.

    Attributes:
        row: The row.
        title: What the page calls it.
        generated: Whether it learns from generated images.
        gain: Comparison with real images alone; None for these, or if a mean is not known.
        against: Comparison with the strongest arm without generated images, or None likewise.
    """

    row: Row
    title: str
    generated: bool
    gain: Comparison | None = None
    against: Comparison | None = None

    def mean(self, metric: str) -> float | None:
        """The mean of a metric over the runs; None if it is not known."""
        return self.row.mean_std(metric)[0]


@dataclass(eq=False)
class Findings:
    """What the arms with the same Original show.

    Attributes:
        title: Dataset and classifier.
        metric: Name in METRICS.
        arms: Real images alone, then other arms without generated images, then those with, each
            group with its best arm first.
        original: The arm of real images alone.
        strongest: The best arm without generated images.
        best: The arm with generated images that the sentences are about.
        state: "better" than the strongest arm without generated images, "partly" (better than real
            images alone), "worse" than these, "open", or "none" without arms to compare.
        sentences: The verdict, then the further comparison.
        remarks: What readers should bear in mind.
    """

    title: str
    metric: str
    arms: list[Arm]
    original: Arm | None = None
    strongest: Arm | None = None
    best: Arm | None = None
    state: str = "none"
    sentences: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def find(table: Sequence[Row], metric: str) -> Iterator[Findings]:
    """The findings of a table, one for each Original and the arms that are compared with it.

    Args:
        table: Rows of a table.
        metric: Name in METRICS.
    """
    groups: dict[int, list[Row]] = {}
    for row in table:
        base = row if row.text("arm") == ORIGINAL else row.original
        groups.setdefault(id(base), []).append(row)
    for rows in groups.values():
        kinds = {"True": "pretrained", "False": "from scratch"}
        words = (rows[0].text("dataset"), rows[0].text("arch"), rows[0].text("pretrained"))
        title = ", ".join(filter(None, (*words[:2], kinds.get(words[2], ""))))
        if len(groups) > 1:
            title += f" ({rows[0].name})"
        findings = Findings(title, metric, _arms(rows))
        _compare(findings)
        _tell(findings)
        yield findings


def better_of(metric: str) -> int:
    """1 if higher values of the metric are better, else -1."""
    return 1 if METRICS[metric].better == "higher" else -1


def _arms(rows: Sequence[Row]) -> list[Arm]:
    arms = []
    for row in rows:
        # The released code's results do not say how many images were generated.
        generated = row.text("num_generated") not in ("0", "") or (
            row.text("num_generated") == "" and row.text("arm") != ORIGINAL
        )
        arms.append(Arm(row, _title(row, generated), generated))
    titles = [arm.title for arm in arms]
    for arm in arms:
        if titles.count(arm.title) > 1:
            arm.title = arm.row.name
    return arms


def _title(row: Row, generated: bool) -> str:
    """A readable title: "set_5x + RandAugment" for "set_5x_randaugment", if the facts say so."""
    name = row.text("arm")
    rest = row.name.removeprefix(name)  # lr or folder, if they tell arms apart
    if name == ORIGINAL:
        return REAL_ALONE + rest
    additions = []
    labels, augment = row.text("labels"), row.text("augment")
    augmentation = AUGMENTATIONS.get(augment, AUGMENTATIONS["default"]).title
    for word, shown in ((labels, f"{labels} labels"), (augment, augmentation)):
        parts = name.split("_")
        words = word.split("_")
        places = [i for i in range(len(parts)) if word and parts[i : i + len(words)] == words]
        if shown and places:
            del parts[places[0] : places[0] + len(words)]
            name = "_".join(parts)
            additions.append(shown)
    start = [name] if name else [] if generated else ["real images"]
    return (" + ".join([*start, *additions]) or name) + rest


def _compare(findings: Findings) -> None:
    """Fill in `original`, `strongest`, `best` and the comparisons of all arms."""
    # The two arms that others are compared with.
    metric, sign = findings.metric, better_of(findings.metric)
    for arm in findings.arms:
        if arm.row.text("arm") == ORIGINAL:
            findings.original = arm
    plain = [a for a in findings.arms if not a.generated and a.mean(metric) is not None]
    if plain:
        findings.strongest = max(plain, key=lambda arm: sign * arm.mean(metric))
    # The comparisons, and the best arm with generated images by them.
    for arm in findings.arms:
        arm.gain = arm.row.comparison(metric)
        if findings.strongest and arm is not findings.strongest:
            base = findings.strongest.row
            other = dataclasses.replace(arm.row, original=base, _comparisons={})
            arm.against = arm.gain if base is arm.row.original else other.comparison(metric)
    findings.arms.sort(key=lambda arm: _place(arm, metric))
    known = [arm for arm in findings.arms if arm.generated and arm.mean(metric) is not None]
    if known:
        findings.best = max(
            known,
            key=lambda arm: (
                _is(arm.against, "better"), _is(arm.gain, "better"), sign * arm.mean(metric),
            ),
        )  # fmt: skip


def _place(arm: Arm, metric: str) -> tuple[bool, bool, float]:
    """A sort key: real images alone, other arms without generated images, then those with."""
    mean = arm.mean(metric)
    value = math.inf if mean is None else -better_of(metric) * mean
    return arm.row.text("arm") != ORIGINAL, arm.generated, value


def _is(comparison: Comparison | None, verdict: str) -> bool:
    return bool(comparison and comparison.gain and comparison.gain.verdict == verdict)


def _tell(findings: Findings) -> None:
    """Fill in `state`, `sentences` and `remarks`."""
    best, original = findings.best, findings.original
    if best is None:
        findings.sentences = ["No arm with generated images is finished yet: run train_expand.py."]
        return
    if original is None or best.gain is None:
        findings.sentences = [
            f"There is no run on real images alone that {best.title} can be compared with: "
            "run train_original.py with the same settings."
        ]
        return
    findings.sentences = _sentences(findings, best, original)
    findings.state = _state(findings, best)
    findings.remarks = _remarks(findings, best)


def _sentences(findings: Findings, best: Arm, original: Arm) -> list[str]:
    metric, strongest = findings.metric, findings.strongest
    tested = f"With {_sample(best)}"
    told = _told(best.gain, metric, original.title)
    if strongest is original or strongest is None or best.against is None:
        others = [arm for arm in findings.arms if not arm.generated and arm is not original]
        further = (
            "No other arm without generated images is stronger than real images alone."
            if others
            else "Whether classic augmentation alone would do as much is not known: add the arm "
            "real images + RandAugment (train_original.py --augment randaugment)."
        )
        return [_headline(tested, best, told, best.gain), further]
    harder = f"the strongest arm without generated images, {strongest.title}"
    if _is(best.against, "better") and not _is(best.gain, "better"):
        first = f"{tested}: {best.title} {_told(best.against, metric, f'{harder},')}."
        return [first, f"Against {original.title} it {_told(best.gain, metric)}."]
    further = f"Against {harder}, it {_told(best.against, metric)}."
    return [_headline(tested, best, told, best.gain), further]


def _headline(tested: str, best: Arm, told: str, comparison: Comparison) -> str:
    if comparison.gain is None or comparison.gain.verdict != CANNOT_TELL:
        return f"{tested}: {best.title} {told}."
    return (
        f"{tested} it cannot be told whether generated images help. "
        f"The best arm, {best.title}, {told}."
    )


def _told(comparison: Comparison, metric: str, base: str = "") -> str:
    """The words that follow the name of an arm, such as "is better than ... by 2.0 points"."""
    than, on, gain = f" than {base}" if base else "", f" on {base}" if base else "", comparison.gain
    if gain is None:
        points = _points(comparison.mean, metric, sign=True)
        if not base:
            return f"has {points}, without an interval"
        return f"has {points} against {base}, without an interval, so that it may be chance"
    if gain.verdict == CANNOT_TELL:
        text = f"has {_points(gain.mean, metric, sign=True)}{on} {_interval(gain.low, gain.high)}"
        return text if base else f"cannot be told apart: it {text}"
    low, high = sorted((abs(gain.low), abs(gain.high)))
    amount = _points(abs(gain.mean), metric)
    return f"is {gain.verdict}{than} by {amount} {_interval(low, high)}"


def _points(value: float, metric: str, sign: bool = False) -> str:
    number = signed(value) if sign else f"{value:.1f}"
    of = "" if metric == "last_accuracy" else f" of {METRICS[metric].title}"
    return f"{number} points{of}"


def signed(value: float) -> str:
    """A number with one decimal, its sign, and a typographic minus; zero has no sign."""
    return "0.0" if abs(value) < NO_DIFFERENCE else f"{value:+.1f}".replace("-", "\u2212")


def _interval(low: float, high: float) -> str:
    return f"(95 % interval {low:.1f} to {high:.1f})".replace("-0.0", "0.0").replace("-", "\u2212")


def _sample(arm: Arm) -> str:
    """The size of the experiment in words, such as "15 test images and 3 seeds"."""
    gain = arm.gain.gain if arm.gain else None
    num_test = gain.num_test if gain else arm.row.text("num_test")
    num_seeds = gain.num_seeds if gain else len(arm.row.runs)
    images = f"{num_test} test image{'s' * (str(num_test) != '1')}" if num_test else ""
    unknown = "an unknown number of test images"
    return f"{images or unknown} and {num_seeds} seed{'s' * (num_seeds != 1)}"


def _state(findings: Findings, best: Arm) -> str:
    if _is(best.against, "better") and findings.strongest is not findings.original:
        return "better"
    if _is(best.gain, "better"):
        return "partly"
    return "worse" if _is(best.gain, "worse") else "open"


def _remarks(findings: Findings, best: Arm) -> list[str]:
    remarks = []
    for comparison, base in ((best.gain, REAL_ALONE), (best.against, findings.strongest)):
        gain = comparison.gain if comparison else None
        if gain and gain.verdict == CANNOT_TELL and abs(gain.mean) >= NO_DIFFERENCE:
            name = base if isinstance(base, str) else base.title
            remarks.append(_needed(name, gain))
        if findings.strongest is findings.original:
            break
    gain = best.gain.gain
    if gain is None:
        return [f"No interval: {best.gain.problem}."]
    if gain.images_only:
        remarks.append("One seed: the interval is over the test images alone; others may differ.")
    number = sum(arm.generated for arm in findings.arms)
    if number > 1:
        chance = 100 * (1 - (1 - FALSE_ALARM) ** number)
        remarks.append(
            f"It is the best of {number} arms with generated images, and each interval stands by "
            f"itself: if none of them helped, one would be called better in up to {chance:.0f} % "
            "of such studies."
        )
    return remarks


def _needed(base: str, gain: Gain) -> str:
    if gain.num_test == 1:
        return "One test image tells nothing."
    if gain.num_needed is None and gain.images_only:
        return f"No number of test images would tell the difference to {base}, it is so small."
    if gain.num_needed is None:
        return (
            f"The seeds differ so much that with {gain.num_seeds} of them no number of test images "
            f"would tell the difference to {base}; more seeds would."
        )
    return (
        f"To tell a difference of this size to {base}, about {_round_up(gain.num_needed)} test "
        f"images would be needed instead of {gain.num_test}, all else equal."
    )


def _round_up(number: int) -> str:
    """The number rounded up to two significant digits."""
    unit = 10 ** max(0, math.floor(math.log10(number)) - 1)
    return f"{math.ceil(number / unit) * unit:,}"
