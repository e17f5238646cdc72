import ast
import inspect
import pickle
from pathlib import Path

import pytest

from nestling import errors

CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_is_a_nestling_error(kind: type[Exception]) -> None:
    assert issubclass(kind, errors.NestlingError)


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    """Indentation is depth: a class is below the last one that is drawn further to the left."""
    drawn: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        word = line.strip(" │├└─").split(" ")[0]
        if not word.endswith("Error"):
            continue
        depth = line.index(word)
        above = [(column, name) for column, name in above if column < depth]
        drawn[word] = above[-1][1] if above else "Exception"
        above.append((depth, word))
    assert drawn == {kind.__name__: kind.__bases__[0].__name__ for kind in CLASSES}


def test_the_module_imports_nothing() -> None:
    tree = ast.parse(Path(errors.__file__).read_text("utf-8"))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def test_a_text_error_names_its_place_and_parameter() -> None:
    error = errors.TextError("the text is empty", index=3)
    assert (str(error), error.index, error.param) == ("input 3: the text is empty", 3, "input")


def test_a_usage_error_names_its_parameter() -> None:
    assert errors.UsageError("no", param="dimensions").param == "dimensions"
    assert errors.UsageError("no").param is None


def test_errors_go_from_process_to_process() -> None:
    text = pickle.loads(pickle.dumps(errors.TextError("the text is empty", index=3)))
    assert (type(text), str(text), text.index, text.param) == (
        errors.TextError,
        "input 3: the text is empty",
        3,
        "input",
    )
    usage = pickle.loads(pickle.dumps(errors.UsageError("no", param="dimensions")))
    assert (str(usage), usage.param) == ("no", "dimensions")
