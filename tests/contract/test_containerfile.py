"""The container's steps, done as far as they can be without a container engine: they end in a server that is ready."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

from tests.installing import ROOT, clean, copied, run


@dataclass
class Stage:
    """The steps of the Containerfile, done below a folder in place of `/` with an environment in place of its image."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    cwd: str = "/"
    commands: list[list[str]] = field(default_factory=list)

    def here(self, text: str) -> str:
        """A command or path with the folder in front of every absolute path."""
        return re.sub(r"(?<![\w./-])/(?=[a-z])", f"{self.root}/", text)

    def copy(self, arguments: str) -> None:
        """`COPY [--from=STAGE] SOURCE... TARGET`; both stages share the folder, so copies between them are there."""
        *names, target = arguments.split()
        if names[0].startswith("--from="):
            return
        folder = self.root / target.strip("/") if target.startswith("/") else self.root / self.cwd.strip("/") / target
        for name in names:
            source = ROOT / name
            place = folder / name if target.endswith("/") else folder
            place.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                copied(source, place)
            else:
                shutil.copy(source, place)

    def run(self, command: str) -> None:
        if command.startswith("useradd"):
            return
        path = f"{self.root}/env/bin:/usr/bin:/bin"
        done = subprocess.run(
            ["/bin/sh", "-ec", self.here(command)],
            cwd=self.root / self.cwd.strip("/"),
            env=clean(**self.environment) | {"PATH": path},
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"


def instructions() -> Iterator[tuple[str, str]]:
    """Of the Containerfile: (instruction, arguments), lines joined."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Containerfile").read_text("utf-8"))
    for line in text.splitlines():
        if line and not line.startswith("#"):
            word, _, arguments = line.partition(" ")
            yield word, arguments


def test_the_steps_of_the_containerfile_end_in_a_server(tmp_path: Path) -> None:
    """All steps but the base images and the user, which want a container engine."""
    made = run(os.path.realpath(sys.executable), "-m", "venv", tmp_path / "env", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    stage = Stage(tmp_path)
    words = []
    for word, arguments in instructions():
        words.append(word)
        match word:
            case "FROM":
                assert arguments.startswith("python:3.")
                stage.cwd = "/"
            case "WORKDIR":
                stage.cwd = arguments
                (tmp_path / arguments.strip("/")).mkdir(parents=True)
            case "COPY":
                stage.copy(arguments)
            case "RUN":
                stage.run(arguments)
            case "ENV":
                stage.environment |= dict(one.split("=", 1) for one in shlex.split(stage.here(arguments)))
            case "ENTRYPOINT" | "CMD":
                stage.commands.append(json.loads(arguments))
            case _:
                assert word in ("USER", "EXPOSE", "HEALTHCHECK")
    assert words.count("FROM") == 2
    assert words.index("USER") < words.index("ENTRYPOINT"), "not as root"
    serves(stage)


def serves(stage: Stage) -> None:
    """The container's command is ready with what was built into it, and its health check is content."""
    command = [one for part in stage.commands for one in part]
    environment = clean(**stage.environment) | {"PATH": f"{stage.root}/env/bin:/usr/bin:/bin"}
    with subprocess.Popen(
        [*command, "--port", "0"],
        executable=stage.root / "env/bin/nestling",
        env=environment,
        cwd=stage.root,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout
        try:
            found = re.search(r"http://[\d.]+:(\d+)", child.stdout.readline())
            assert found
            with urlopen(f"http://127.0.0.1:{found[1]}/ready") as answer:
                assert answer.status == 200
        finally:
            child.terminate()
        assert child.wait(30) == 0
