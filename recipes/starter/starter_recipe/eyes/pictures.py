"""Step 2 of the eyes: draw emoji, flags, icons and plain shapes, with names (emoji and flags: in eight languages).

Reads  WORK/npm (SVG sets), WORK/debian/unicode-cldr-core (names).
Writes WORK/pictures.npy, (N, 84, 84, 4) uint8 with alpha, and WORK/pictures.json: "names" (one dictionary of language
       to name for each concept), "concepts" (N numbers of concepts) and "fonts" (N names of sets).
"""

from __future__ import annotations

import argparse
import io
import json
import re
import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import resvg_py
from PIL import Image

from starter_recipe.eyes.fetch import PICTURES
from starter_recipe.eyes.shapes import shape_pictures

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

LANGUAGES = ("en", "de", "fr", "es", "it", "ru", "zh", "ja")
SIDE = 84
UNSEEN = "fluent-emoji-flat"
FLAGS, ICONS = ("circle-flags", "flag"), ("mdi", "tabler")
SKIN_TONES = range(0x1F3FB, 0x1F400)
_DROPPED = {"fe0f", "200d"}
_VARIANT = re.compile(r"-(outline|filled|variant|off|box|circle|1x1|4x3)\b")
Names = dict[str, str]
Drawing = tuple[str, str, Names]
"""Font, SVG text, names."""


def emoji_names(work: Path) -> dict[str, Names]:
    """Names by code points (hex with dashes, without joiners), of emoji that have one in every language."""
    found: dict[str, Names] = defaultdict(dict)
    folder = work / "debian/unicode-cldr-core/usr/share/unicode/cldr/common"
    for language in LANGUAGES:
        for kind in ("annotations", "annotationsDerived"):
            tree = ET.parse(folder / kind / f"{language}.xml")  # noqa: S314 - a file of a signed package
            for element in tree.iter("annotation"):
                if element.get("type") == "tts" and element.text:
                    found[points(f"{ord(one):x}" for one in element.get("cp", ""))][language] = element.text
    return {
        key: names
        for key, names in sorted(found.items())
        if len(names) == len(LANGUAGES) and not any(int(part, 16) in SKIN_TONES for part in key.split("-") if part)
    }


def points(parts: Iterator[str]) -> str:
    """Join code points, without variation selectors and joiners."""
    return "-".join(part for part in parts if part not in _DROPPED)


def slug(name: str) -> str:
    """An icon's name as the sets spell it."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "")).strip("-")


def svg(icons: dict[str, Any], name: str) -> str:
    """One icon of a set as an SVG file."""
    icon = icons["icons"][name]
    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{left} {top}'
    return f'{head} {width} {height}" width="{SIDE}" height="{SIDE}">{icon["body"]}</svg>'


def read(work: Path, font: str) -> tuple[dict[str, Any], dict[str, str]]:
    """A set's icons, and code points -> icon name where it tells them."""
    folder = work / "npm" / font / "package"
    chars = folder / "chars.json"
    return json.loads((folder / "icons.json").read_text()), json.loads(chars.read_text()) if chars.exists() else {}


def emoji_drawings(work: Path, font: str, names: dict[str, Names], slugs: dict[str, str]) -> Iterator[Drawing]:
    """Every named emoji of a font, each once; `slugs` maps icon names to code points."""
    icons, chars = read(work, font)
    by_name = {name: points(iter(key.split("-"))) for key, name in chars.items()}
    done = set()
    for name in icons["icons"]:
        key = by_name.get(name) or slugs.get(name)
        if key in names and key not in done:
            done.add(key)
            yield font, svg(icons, name), names[key]


def flag_drawings(work: Path, font: str, names: dict[str, Names]) -> Iterator[Drawing]:
    """Flags whose icon is named by a country code: the names of the flag's emoji."""
    icons, _ = read(work, font)
    for name in icons["icons"]:
        if re.fullmatch(r"[a-z]{2}(-4x3)?", name):
            key = "-".join(f"{ord(letter) - ord('a') + 0x1F1E6:x}" for letter in name[:2])
            if key in names:
                yield font, svg(icons, name), names[key]


def icon_drawings(work: Path, font: str) -> Iterator[Drawing]:
    """Icons with their English names, without variants of others."""
    icons, _ = read(work, font)
    for name in icons["icons"]:
        if not _VARIANT.search(name) and not re.search(r"\d", name):
            yield font, svg(icons, name), {"en": name.replace("-", " ")}


def drawings(work: Path) -> Iterator[Drawing]:
    """Every picture that is trained on."""
    names = emoji_names(work)
    slugs = {slug(one["en"]): key for key, one in names.items()}
    slugs |= {name: points(iter(key.split("-"))) for key, name in read(work, "twemoji")[1].items()}
    for font in PICTURES:
        if font in FLAGS:
            yield from flag_drawings(work, font, names)
        elif font in ICONS:
            yield from icon_drawings(work, font)
        elif font != UNSEEN:
            yield from emoji_drawings(work, font, names, slugs)


def drawn(text: str, side: int = SIDE) -> NDArray[np.uint8]:
    """Draw an SVG file: -> (side, side, 4)."""
    data = resvg_py.svg_to_bytes(svg_string=text, width=side, height=side)
    image = Image.open(io.BytesIO(bytes(data))).convert("RGBA")
    return np.asarray(image if image.size == (side, side) else image.resize((side, side)))


def main() -> None:
    """Run the step."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", type=Path, default=Path("work-eyes"))
    work: Path = parser.parse_args().work
    found = list(drawings(work))
    shapes = list(shape_pictures())
    concepts = {name: {"en": name} for name, _ in shapes}
    concepts |= {names["en"]: names for _, _, names in reversed(found)}  # an emoji's names win over an icon's
    order = {name: number for number, name in enumerate(sorted(concepts))}
    pixels = np.lib.format.open_memmap(work / "pictures.npy", "w+", np.uint8, (len(found) + len(shapes), SIDE, SIDE, 4))
    for number, (_, text, _) in enumerate(found):
        pixels[number] = drawn(text)
    pixels[len(found) :] = [one for _, one in shapes]
    record = {
        "names": [concepts[name] for name in order],
        "concepts": [order[name] for name in (*(names["en"] for _, _, names in found), *(name for name, _ in shapes))],
        "fonts": [*(font for font, _, _ in found), *("shapes" for _ in shapes)],
    }
    (work / "pictures.json").write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(pixels)} pictures of {len(concepts)} concepts")


if __name__ == "__main__":
    main()
