"""A small, fixed number of the files that `benchmarks.image_fuzz` reads by the hundred thousand, and every bomb."""

import json
import subprocess
import sys

SCRIPT = """
import json
from tests.image_fuzzing import bombs, run
tally = run(3000, seed=1, last=bombs())
print(json.dumps([tally.images, sum(tally.refused.values()), tally.grown_bytes, len(bombs())]))
"""


def test_mutated_files_are_images_or_errors_and_memory_is_bounded() -> None:
    """In a process of its own, whose memory is nobody else's."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", SCRIPT], capture_output=True, text=True, check=True)
    images, refused, grown, bombs = json.loads(done.stdout)
    assert images + refused == 3000 + bombs
    assert images > 100
    assert refused > 1000
    assert grown <= 256 << 20
