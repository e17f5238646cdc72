"""The battery that judges a new starter: how its sets are split, what a difference means, and what is withheld.

The doors by which it could be tuned to: a withheld set that is judged unasked or by name, a set whose choice depends
on the order of its files, a query that is a document of its own, a loss called chance or chance called a loss.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nestling.evaluation import metrics

RECIPE = Path(__file__).parents[2] / "recipes" / "starter"


def part(name: str) -> Any:
    return importlib.import_module(f"starter_recipe.battery.{name}")


@pytest.fixture(autouse=True)
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe is no installed package."""
    monkeypatch.setattr(sys, "path", [str(RECIPE), *sys.path])


def entries(count: int, language: str = "en") -> list[Any]:
    return [part("entries").Entry(f"query {language} {n}", f"document {language} {n}", language) for n in range(count)]


# What is withheld.


def test_a_withheld_set_is_neither_judged_unasked_nor_by_name() -> None:
    sets = part("sets")
    hidden = sets.withheld()
    assert len(hidden) >= 4
    assert all(hidden.values())
    visible = sets.chosen_sets([], look=False)
    assert not set(visible) & set(hidden)
    assert set(sets.SHIPPED) <= set(visible)
    for name in hidden:
        with pytest.raises(sets.SetNameError, match=f"{name} is withheld"):
            sets.chosen_sets([name], look=False)
        assert sets.chosen_sets([name], look=True) == [name]
    assert set(sets.chosen_sets([], look=True)) == set(visible) | set(hidden)


def test_the_command_refuses_a_withheld_set(monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["battery", "judge", "new", "--against", "old", "--battery", "none", "--sets", "apps-xx"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match="apps-xx is withheld"):
        part("__main__").main()


def test_an_unknown_set_is_an_error_that_lists_the_sets() -> None:
    sets = part("sets")
    with pytest.raises(sets.SetNameError, match="faq: expected one of perlfaq-en, "):
        sets.chosen_sets(["faq"], look=True)


def test_the_battery_is_broad_and_none_of_its_packages_is_trained_on() -> None:
    names, sets = part("packages"), part("sets")
    trained = importlib.import_module("starter_recipe.packages")
    assert set(sets.tasks().values()) == {"retrieval", "text-matching", "code"}
    assert len(sets.chosen_sets([], look=False)) >= 10
    assert set(names.DEBIAN) & set(trained.DEBIAN) <= {names.TRAINED_TERMS}
    python = [{one.split("==")[0] for one in listed} for listed in (names.PYTHON, trained.PYTHON_SOURCES)]
    assert not python[0] & python[1]


def test_the_recorded_counts_are_those_of_the_table() -> None:
    sets, recorded = (
        part("sets"),
        json.loads((RECIPE / "starter_recipe" / "battery" / "counts.json").read_text("utf-8")),
    )
    assert set(recorded) == set(sets.tasks()) - set(sets.SHIPPED)
    assert {name for name, one in recorded.items() if one["withheld"]} == set(sets.withheld())


def test_package_names_are_whole() -> None:
    """A name that is broken at a hyphen cannot be fetched."""
    names = part("packages")
    assert all(not name.startswith("-") and not name.endswith("-") for name in names.DEBIAN)
    assert all(one.count("==") == 1 for one in names.PYTHON)


# How a set is split.


def test_a_sample_depends_on_the_texts_alone() -> None:
    sample, found = part("entries").sample, entries(40)
    first = sample("some", found, queries=10, documents=30)
    assert sample("some", found[::-1], queries=10, documents=30) == first
    assert (len(first.asked), len(first.others)) == (10, 20)
    assert not set(first.asked) & set(first.others)
    assert sample("other", found, queries=10, documents=30) != first


def test_a_rare_language_gets_its_share() -> None:
    found = [*entries(50, "fr"), *entries(6, "ja")]
    chosen = part("entries").sample("some", found, queries=10, documents=20)
    assert [entry.language for entry in chosen.asked] == ["ja"] * 5 + ["fr"] * 5


@pytest.mark.parametrize(
    ("query", "document"),
    [("Query en 0!", "another document"), ("another query", "DOCUMENT en 0."), ("the same text", "The same text.")],
    ids=["query again", "document again", "query is the document"],
)
def test_ambiguous_entries_are_left_out(query: str, document: str) -> None:
    found = [*entries(1), part("entries").Entry(query, document)]
    chosen = part("entries").sample("some", found, queries=10, documents=10)
    assert len(chosen.asked) + len(chosen.others) == 1


def test_a_document_without_a_query_is_only_searched() -> None:
    found = [*entries(3), part("entries").Entry("", "a document that nothing asks for")]
    chosen = part("entries").sample("some", found, queries=10, documents=10)
    assert [entry.document for entry in chosen.others] == ["a document that nothing asks for"]


def test_the_same_document_in_two_languages_is_kept_only_where_it_is_compared_within_its_language() -> None:
    entry = part("entries").Entry
    for within, kept in ((False, 1), (True, 2)):
        found = [entry(f"query {language}", "one document", language, within=within) for language in ("de", "fr")]
        assert len(part("entries").sample("some", found, queries=4, documents=4).asked) == kept


def test_a_set_is_written_with_the_same_hash_again(tmp_path: Path) -> None:
    build = part("build")
    chosen = part("entries").sample("some", entries(20), queries=5, documents=12)
    counts = [build.write_set(tmp_path / name, chosen) for name in "ab"]
    assert counts[0] == counts[1]
    assert (counts[0]["queries"], counts[0]["documents"]) == (5, 12)
    texts = {row["text"] for row in build.texts_of("some", chosen)}
    assert texts == {entry.query for entry in chosen.asked} | {e.document for e in chosen.asked + chosen.others}


def test_the_sentence_pairs_are_parallel_in_grade() -> None:
    read = part("build").read_similarity
    grades = {language: [score for *_, score in read(language)] for language in ("en", "de", "es")}
    assert grades["en"] == grades["de"] == grades["es"]
    assert len(set(grades["en"])) == 4
    texts = [text for language in grades for pair in read(language) for text in pair[:2]]
    assert all(texts)


# What a difference means.


def test_a_certain_loss_and_no_difference_are_told_apart() -> None:
    statistics, generator = part("statistics"), np.random.default_rng(0)
    theirs = generator.uniform(0.2, 1, 150)
    lost = statistics.paired(theirs - generator.uniform(0, 0.2, 150), theirs)
    assert lost.high < 0
    assert lost.p < 0.001
    same = statistics.paired(theirs + generator.normal(0, 0.1, 150), theirs)
    assert same.low < 0 < same.high
    assert same.p > 0.05


def test_equal_values_are_no_difference() -> None:
    values = np.linspace(0, 1, 30)
    found = part("statistics").paired(values, values)
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_pairing_and_the_p_agree_with_the_interval() -> None:
    """The two-sided p is below 0.05 exactly where the 95 % interval excludes zero."""
    statistics, generator = part("statistics"), np.random.default_rng(1)
    for shift in np.linspace(0, 0.05, 11):
        values = generator.normal(shift, 0.2, 100)
        found = statistics.paired(values, np.zeros(100))
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)


def test_spearman_is_that_of_the_benchmarks() -> None:
    generator = np.random.default_rng(2)
    left, right = generator.integers(0, 5, 60).astype(float), generator.normal(0, 1, 60)
    assert part("statistics").spearman(left, right) == pytest.approx(metrics.spearman(left, right), abs=1e-12)
    assert part("statistics").spearman(np.ones(4), right[:4]) == 0


def test_a_worse_correlation_is_a_loss() -> None:
    generator = np.random.default_rng(3)
    gold = np.repeat([0.0, 1.5, 3.0, 5.0], 24)
    theirs, ours = gold + generator.normal(0, 0.5, 96), gold + generator.normal(0, 5, 96)
    found = part("statistics").paired_correlation(gold, ours, theirs)
    assert found.high < 0


def test_holms_correction() -> None:
    """The smallest p times three, the next times two, the last not below the one before it."""
    holm = part("statistics").holm
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.5, "b": 0.9}) == {"a": 1.0, "b": 1.0}
    assert holm({"a": 0.04}) == {"a": 0.04}
