"""What the page's tries are chosen from: queries with passages, those that are sought, and what the try shows.

Texts are ours, pictures those of the sets `emoji-names` and `pages-en`, in fonts that the starter's eyes never saw.
`benchmarks.tries` measures which candidates hold for a checkpoint.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

from nestling._util.data import data_folder


@dataclass(frozen=True, slots=True)
class Try:
    """A search with a known answer: `answers` counts passages first, then images (files of nestling-data)."""

    kind: str
    title: str
    shows: str
    task: str
    query: str
    answers: tuple[int, ...]
    passages: tuple[str, ...] = ()
    images: tuple[str, ...] = field(default=())


SUNSETS = (
    "How to configure a Linux firewall with iptables",
    "Un beau coucher de soleil sur la plage",
    "海滩上美丽的日落",
    "The stock market fell sharply on Monday",
    "浜辺に沈む美しい夕日",
    "Ein Rezept für Apfelkuchen mit Zimt",
)
MESSAGES = (
    "Impossible d'enregistrer le fichier : le disque est plein.",
    "Enter your user name and password.",
    "ディスクがいっぱいのため、ファイルを保存できませんでした。",
    "The printer is out of paper.",
    "Die Datei konnte nicht gespeichert werden, da der Datenträger voll ist.",
    "磁盘已满，无法保存文件。",
    "Der Benutzername ist ungültig.",
)
COMMANDS = (
    "Remove files or directories",
    "Show the free space on each file system",
    "Change the password of a user",
    "Compare two files line by line",
    "Send a mail message from the command line",
    "Sort the lines of a text file",
)
FUNCTIONS = (
    "def invert(table): return {value: key for key, value in table.items()}",
    "def read_lines(path): return [line.strip() for line in open(path)]",
    "def is_prime(n): return n > 1 and all(n % d for d in range(2, int(n ** 0.5) + 1))",
    "def mean(values): return sum(values) / len(values)",
    "def flatten(lists): return [item for inner in lists for item in inner]",
    "def send_mail(server, sender, to, text): server.sendmail(sender, [to], text)",
)
FACTS = (
    "Sound is played through the default output device.",
    "Restore it from the last backup, or look for it in the trash folder.",
    "The museum is closed on Mondays.",
    "Eight binary digits form one octet.",
    "git revert makes a new commit that takes the changes back.",
    "Bake the bread for forty minutes at a high temperature.",
)


def _across(language: str, query: str, answer: int) -> Try:
    return Try(
        "across languages",
        f"Ask in {language}, find English",
        "The command that does what the query says comes first, although it is described in another language.",
        "retrieval", query, (answer,), COMMANDS,
    )  # fmt: skip


def _question(query: str, answer: int) -> Try:
    shows = "The answer comes first, although it has no word of the question."
    return Try("question", "A question to its answer", shows, "retrieval", query, (answer,), FACTS)


def _code(title: str, query: str, answer: int) -> Try:
    shows = "The function that does what the query says comes first. The task is code."
    return Try("code", title, shows, "code", query, (answer,), FUNCTIONS)


TEXTS = (
    Try(
        "translation", "A sunset in four languages",
        "French, Chinese and Japanese share no word with the query; its translations still come first.",
        "retrieval", "A beautiful sunset over the beach", (1, 2, 4), SUNSETS,
    ),
    _across("Japanese", "ファイルやディレクトリを削除する", 0),
    _across("German", "Wie ändere ich das Passwort eines Benutzers?", 2),
    _across("French", "Comment comparer deux fichiers ligne par ligne ?", 3),
    _across("Chinese", "如何对文本文件的行进行排序？", 5),
    _code("Words to code", "Check whether a number is prime.", 2),
    _code("Words to code", "Swap the keys and values of a dictionary.", 0),
    _code("German words to code", "Alle Zeilen einer Datei lesen", 1),
    _question("How can I recover a file that I deleted?", 1),
    _question("How many bits are in a byte?", 3),
    Try(
        "message", "A message in five languages",
        "A program's message is near to its translations, far from other messages. The task is text-matching.",
        "text-matching", "The file could not be saved because the disk is full.", (0, 2, 4, 5), MESSAGES,
    ),
)  # fmt: skip

SHELVES = (
    (52, 26, 69, 93, 23),  # cat, volcano, heart with arrow, full moon, scissors
    (31, 55, 76, 3, 58),  # microscope, banana, bullet train, frog, teapot
    (9, 39, 99, 85, 97),  # onion, ice cream, newspaper, fountain, smiling face with sunglasses
    (60, 59, 10, 6, 89),  # bird, briefcase, high-heeled shoe, mosque, video game
    (70, 4, 84, 79, 77),  # pig, magnet, umbrella, calendar, station
)
"""Numbers of emoji that are shown together, unlike each other."""
LANGUAGES = {"de": "German", "fr": "French", "es": "Spanish", "ja": "Japanese", "zh": "Chinese"}
PAGES = (
    {
        "p5": "Can I use Scrapy with BeautifulSoup?",
        "p7": "Which UPS should I buy?",
        "p35": "What does “Django” mean, and how do you pronounce it?",
        "p55": "Can I backup my root partition (/) with Borg?",
        "p129": "Does SQLAlchemy support ALTER TABLE, CREATE VIEW, CREATE TRIGGER, Schema Upgrade Functionality?",
    },
    {
        "p73": "Can I disable checking for free disk space?",
        "p39": "How do I walk all objects that are related to a given object?",
        "p45": "I get “Filtered offsite request” messages. How can I fix them?",
        "p99": "Should I use the stable version or development version?",
        "p41": "upsd is running, so why can’t I connect to it?",
    },
)
"""Pages in fonts that are left out of the training of the eyes, and their questions."""


@cache
def _names() -> dict[str, str]:
    """Query's id -> name of an emoji: language and number."""
    path = data_folder("sets", wanted_for="names of emoji") / "emoji-names" / "queries.jsonl"
    rows = map(json.loads, path.read_text("utf-8").splitlines())
    return {row["_id"]: row["text"] for row in rows}


def _pictures() -> Iterator[Try]:
    """Each emoji of each shelf by its English name, and by those in other languages."""
    seen = "This set of emoji was left out of training."
    for shelf in SHELVES:
        files = tuple(f"sets/emoji-names/images/e{number}.png" for number in shelf)
        for place, number in enumerate(shelf):
            shows = f"The picture with this name comes first. {seen}"
            title = "A picture by its name"
            yield Try("emoji: English", title, shows, "retrieval", _names()[f"en{number}"], (place,), images=files)
            for code, language in LANGUAGES.items():
                english = _names()[f"en{number}"]
                shows = f"The picture with this {language} name ({english}) comes first. {seen}"
                title, name = f"A picture by its {language} name", _names()[f"{code}{number}"]
                yield Try("emoji: other languages", title, shows, "retrieval", name, (place,), images=files)


def _pages() -> Iterator[Try]:
    """Pages by their questions."""
    shows = "The picture of the page that answers the question comes first: it is read as a picture, not as text."
    for shelf in PAGES:
        files = tuple(f"sets/pages-en/images/{page}.png" for page in shelf)
        for place, question in enumerate(shelf.values()):
            yield Try("page", "A page by a question", shows, "retrieval", question, (place,), images=files)


CANDIDATES = (*TEXTS, *_pictures(), *_pages())
