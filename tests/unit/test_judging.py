import pytest
from benchmarks import judging


def test_a_permutation_test_counts_the_signs_that_are_as_far_from_zero() -> None:
    """Against all sign patterns counted by hand; 0.01 is 4 standard errors of as many draws."""
    assert judging.permutation_p([1, 1, 1, 0]) == pytest.approx(2 / 8, abs=0.01)
    assert judging.permutation_p([0.3, 0.2, 0.1, -0.1]) == pytest.approx(6 / 16, abs=0.01)
    assert judging.permutation_p([0.2, -0.2]) == 1
    assert judging.permutation_p([0, 0]) == 1


def test_holm_corrects_the_smallest_by_all_and_keeps_the_order() -> None:
    assert judging.holm([0.04, 0.01, 0.03, 0.005]) == pytest.approx([0.06, 0.03, 0.06, 0.02])
    assert judging.holm([0.9, 0.6]) == [1, 1]


def test_rankings_name_what_is_significant_and_what_is_left_of_it() -> None:
    sure, chance = ([0.3] * 20, [0.0] * 20), ([0.0] * 18 + [-0.2, -0.1], [0.0] * 20)
    rows = [
        {"task": "code", "stock": "IQ2_M", "mix": mix, "nDCG@10": {"set": dict.fromkeys(judging.COMPARISONS, found)}}
        for mix, found in (("free", judging.difference(*sure)), ("embedding kept", judging.difference(*chance)))
    ]
    found = judging.rankings(rows)["mix to stock"]
    assert (found["comparisons"], found["lower"]) == (2, [])
    assert [one["of"] for one in found["higher"]] == [["code", "IQ2_M", "free", "set"]]
    assert found["left_after_correction"] == [["code", "IQ2_M", "free", "set"]]
    assert judging.rankings(rows)["stock to F16"]["comparisons"] == 1, "a stock file is one, whatever mixes it has"
