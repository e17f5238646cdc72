"""What the page's tries are chosen from: queries with passages, those that are sought, and what the try shows.

Texts are ours. `benchmarks.tries` measures which of them hold for a checkpoint.
"""

from dataclasses import dataclass, field


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
    _question("How can I recover a file that I deleted?", 1),
    _question("How many bits are in a byte?", 3),
    _code("Words to code", "Check whether a number is prime.", 2),
    _code("Words to code", "Swap the keys and values of a dictionary.", 0),
    _code("German words to code", "Alle Zeilen einer Datei lesen", 1),
    Try(
        "message", "A message in five languages",
        "A program's message is near to its translations, far from other messages. The task is text-matching.",
        "text-matching", "The file could not be saved because the disk is full.", (0, 2, 4, 5), MESSAGES,
    ),
)  # fmt: skip
CANDIDATES = TEXTS
