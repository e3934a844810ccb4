"""Names of any script on pictures are drawn or spelled out, and every class has its row."""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image, ImageDraw, ImageFont

from expansion.generation.sheets import write_contact_sheets
from expansion.images.records import ImageRecord
from expansion.pictures import lettering
from expansion.pictures.figures import ROWS_A_PAGE, contact_sheet, save_contact_sheets
from expansion.pictures.lettering import draw_text, fitted, text_width, wrapped

CATS, TREE = "\u732b", "\u0451\u043b\u043a\u0430"
NAMES = (
    "L\u00f6we",
    CATS,
    TREE,
    "\U0001f600 face",
    "a\nb",
    "a" * 300,
    "x\u030c",
    "\u200d\ufe0f",
    "",
)


class Stamp:
    """A font of one size that has some letters; what it lacks is a box, as in real fonts."""

    def __init__(self, letters: str):
        self.letters = letters

    def getmask(self, letter: str):
        width = 3 + ord(letter) % 5 if letter in self.letters else 2
        return Image.new("L", (width, 4), 255).im


@pytest.fixture
def fonts(monkeypatch):
    """Function that leaves only fonts of those letters on the machine, by file name."""

    def leave(**letters: str) -> None:
        real = ImageFont.load_default

        def font(file, size):
            return real(size) if file is None else Stamp(letters[file])

        monkeypatch.setattr(lettering, "_font_files", lambda: tuple(letters))
        monkeypatch.setattr(lettering, "_font", font)
        finder = functools.cache(lettering._file_for.__wrapped__)
        monkeypatch.setattr(lettering, "_file_for", finder)

    return leave


def inked(image: Image.Image) -> tuple[int, int, int, int] | None:
    return image.convert("L").point(lambda v: 255 * (v < 128)).getbbox()


def test_without_fonts_names_are_spelled_out_and_never_boxes(fonts):
    fonts()
    spelled = {name: lettering._spelled(name, 13) for name in NAMES}
    assert spelled["L\u00f6we"] == "Lowe" and spelled[CATS] == "\\u732b"
    assert spelled[TREE] == "\\u0451\\u043b\\u043a\\u0430" and spelled["\u200d\ufe0f"] == ""
    assert all(text.isascii() for text in spelled.values())


def test_every_letter_is_drawn_by_a_font_that_has_it(fonts):
    fonts(latin="\u00f6\u0451", slavic="\u0451\u043b\u043a\u0430", asian=CATS)
    assert [lettering._file_for(c, 13) for c in f"L\u00f6\u0451\u043b{CATS}\u05d0"] == [
        *(None, "latin", "latin", "slavic", "asian", "")
    ]


def test_a_decomposed_umlaut_is_the_letter_itself(fonts):
    fonts(latin="\u00f6")
    assert lettering._spelled("Lo\u0308we", 13) == "L\u00f6we"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_lines_are_no_wider_and_no_more_than_there_is_room_for(name):
    lines = wrapped(name, 100, 3)
    assert len(lines) <= 3 and all(text_width(line) <= 100 for line in lines)
    assert text_width(fitted(name, 60)) <= 60


def test_long_names_break_at_spaces_and_end_in_an_ellipsis():
    assert wrapped("2012 Ram Cargo Van", 70, 5) == ["2012 Ram", "Cargo Van"]
    assert wrapped("one two three four five six seven", 60, 2)[1].endswith("...")


@pytest.mark.parametrize("anchor", ["la", "lm", "ma", "rm"])
def test_text_stands_at_its_anchor(anchor):
    image = Image.new("RGB", (100, 60), "white")
    draw_text(ImageDraw.Draw(image), (50, 30), "HHH", 13, anchor)
    left, top, right, bottom = inked(image)
    across = {"l": left, "m": (left + right) / 2, "r": right}[anchor[0]]
    down = {"a": top - 2, "m": (top + bottom) / 2}[anchor[1]]
    assert abs(across - 50) <= 2 and abs(down - 30) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_names_of_any_script_leave_images_alone(name):
    sheet = contact_sheet([(name, [Image.new("RGB", (8, 8), "red")])], [name])
    assert sheet.crop((154, 24, 250, 120)).getcolors() == [(96 * 96, (255, 0, 0))]


def test_more_rows_than_a_page_holds_go_to_further_pages(tmp_path):
    rows = [(str(i), [Image.new("RGB", (8, 8), "red")]) for i in range(2 * ROWS_A_PAGE + 1)]
    save_contact_sheets(rows, tmp_path / "sheet.png", ["real"], cell=20)
    heights = [Image.open(tmp_path / f"sheet{end}.png").height for end in ("", "_2", "_3")]
    assert heights == [20 + 24 * n + 4 for n in (ROWS_A_PAGE, ROWS_A_PAGE, 1)]
    assert len(list(tmp_path.iterdir())) == 3


def test_the_contact_sheet_has_a_row_for_every_class_whatever_their_sizes(tmp_path):
    """The labels of 23 classes of 1 to 4 images are told from the grey of their images."""
    records, rows = [], []
    for label in range(23):
        for i in range(1 + label % 4):
            name = f"train/{label:02d}/{i}.png"
            records.append(picture(tmp_path / name, name, label))
            made = f"{label:02d}/{i}_expand_0.png"
            picture(tmp_path / made, made, label)
            rows.append({"file_name": made, "class": str(label), "source": name, "variant": 0})
    plan = SimpleNamespace(
        output_dir=tmp_path,
        expanded=records,
        config=SimpleNamespace(num_images_per_prompt=1),
        dataset=SimpleNamespace(prompt_names=[f"class {i}" for i in range(23)]),
    )
    write_contact_sheets(plan, rows)
    found = []
    for name, count in (("contact_sheet.png", 20), ("contact_sheet_2.png", 3)):
        sheet = Image.open(tmp_path / name)
        assert sheet.height == 20 + 100 * count + 4
        cells = [
            [sheet.getpixel((200 + 100 * j, 70 + 100 * i))[0] for j in range(2)]
            for i in range(count)
        ]
        found += cells
    assert found == [[10 * label] * 2 for label in range(23)]


def picture(path: Path, name: str, label: int) -> ImageRecord:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (10 * label, 0, 0)).save(path)
    return ImageRecord(path, name, label, str(label))
