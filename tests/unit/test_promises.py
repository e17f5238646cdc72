"""What the pages promise to operators, and the tests that check it: each phrase is in its page, each test exists.

SECURITY.md is covered sentence by sentence; of docs/server.md the paragraphs on running it for others and every row of
its errors; of docs/bulk.md "What is promised" and what is left out or rejected. A number in a phrase is the constant.
"""

import re
from pathlib import Path

import pytest

from nestling.bulk.settings import IMAGE_SHARD_ROWS, SHARD_ROWS
from nestling.bulk.sources import EDGE_BYTES
from nestling.server.api import bodies
from nestling.server.core import answer_budget, model_pool, service, token_vectors
from nestling.server.http import connection, limits
from nestling.server.settings import ServeSettings

ROOT = Path(__file__).parents[2]
SERVE = ServeSettings(memory_budget_mb=1)
SECURITY = {
    "Nothing in a repository or a checkpoint is executed or unpickled": "test_code_and_pickles_are_never_opened",
    "a tokenizer's text files and `README.md` are": "test_no_code_and_no_pickle_is_ever_asked_for",
    "is checked by our own code before": "test_a_pulled_file_that_lies_is_refused_by_our_reader",
    "within a second and 256 MiB": "test_bombs_are_refused_fast_and_within_256_mib",
    "are checked before a file gets its final name": "test_a_wrong_hash_is_refused_and_thrown_away",
    "a download beyond the announced size is stopped": "test_a_hub_that_never_stops_is_stopped",
    "names and cached links that lead out of the repository's folder are refused": (
        "test_a_listing_with_a_name_that_leads_elsewhere_is_refused"
    ),
    "cached links that lead out": "test_links_and_references_that_leave_the_repository_are_not_followed",
    "The token is sent to the hub only": "test_the_token_is_sent_to_the_hub_and_to_nobody_else",
    "its bytes are checked against its card or the hub's hash": "test_a_file_that_is_not_its_cards_is_refused",
    "of five formats are recognised by their bytes": "test_other_formats_of_pillow_are_never_opened",
    "limits of size and pixels are checked before a decoder": "test_a_bomb_is_refused_by_its_header",
    "The server downloads images only from hosts that are listed": "test_urls_are_fetched_from_listed_hosts_alone",
    "from public addresses that are resolved once": "test_addresses_that_are_not_of_the_open_internet",
    "are resolved once": "test_a_name_is_resolved_once_and_that_address_connected_to",
    "redirects are checked the same way": "test_redirects_are_checked_anew",
    "Every file is written under a temporary name, synced and renamed": "test_nothing_else_writes_files",
    "After a kill, an interruption": "test_a_signal_leaves_no_final_name",
    "a full disk": "test_a_full_disk_leaves_nothing",
    "limits each request's body, inputs": "test_100_000_inputs_are_413",
    "tokens and containers": "test_more_lists_than_can_be_read_at_once_are_413",
    "all requests together by number": "test_a_full_house_is_429_with_retry_after_at_once",
    "bytes of bodies": "test_bodies_of_all_requests_together_are_bounded",
    "tokens in the queue": "test_a_full_queue_is_429_but_one_large_request_is_not",
    "until the last byte of a response is sent": (
        "test_an_answer_holds_its_bytes_until_it_has_left_and_one_alone_may_be_larger"
    ),
    "Models stay within a memory budget": (
        "test_a_model_that_does_not_fit_beside_those_in_use_is_refused_until_they_are_done"
    ),
    "the limits of a container count": "test_a_container_serves_is_loaded_drained_and_restarted",
    "The time for request heads, bodies": "test_slow_and_idle_connections_are_reaped_while_others_are_served",
    "and responses is limited": "test_a_reader_that_takes_a_little_now_and_then_is_let_go_too",
    "Keys are compared in constant time": "test_every_key_is_compared_in_constant_time",
    "texts and keys are never logged": "test_texts_are_not_logged",
    "a foreign `Host` are refused": ("test_a_name_that_is_not_ours_gets_nothing_from_a_keyless_server_on_loopback"),
}
SERVER = {
    "a value that cannot be honoured: an empty text": (
        "test_empty_null_nested_and_mixed_inputs_are_400_naming_the_index"
    ),
    "an untrained size": "test_an_untrained_size_is_400_naming_it",
    "a text over the model's limit or `--max-text-tokens`": "test_a_longer_text_is_refused_with_the_limit",
    "a missing or wrong key": "test_keys_are_compared_as_bytes_and_never_logged",
    "a `Host` that is not this server's": "test_names_are_checked_where_it_matters",
    "a model that is not served": "test_an_unknown_model_is_404_with_its_whole_name_and_what_is_served",
    "a method that the path does not have": "test_a_wrong_method_says_so_and_which_are_right",
    "HEAD is answered where GET is": "test_head_is_get_without_a_body",
    f"a body that takes over {limits.BODY_TIMEOUT_S:g} s": (
        "test_slow_and_idle_connections_are_reaped_while_others_are_served"
    ),
    f"over {SERVE.max_inputs:,} inputs or {SERVE.max_body_bytes // 10**6} MB": (
        "test_300_mb_are_413_without_being_read_into_memory"
    ),
    f"of over {bodies.MOST_CONTAINERS:,} lists": "test_more_lists_than_can_be_read_at_once_are_413",
    f"over {token_vectors.MOST_TOKENS:,} tokens with a vector each": "test_what_cannot_be_honoured_is_refused_by_name",
    "images over their": "test_the_pixels_of_a_request_are_added_up_before_any_is_decoded",
    "a compressed body": "test_a_compressed_body_is_415",
    f"{SERVE.max_in_flight} requests in flight": "test_a_full_house_is_429_with_retry_after_at_once",
    f"{SERVE.max_queue_tokens:,} tokens in the queue": "test_a_full_queue_is_429_but_one_large_request_is_not",
    f"{SERVE.max_answer_mb} MiB of vectors": (
        "test_clients_that_never_read_hold_no_more_vectors_than_the_budget_and_others_are_served"
    ),
    "the engine failed twice on this request": "test_nan_is_a_500_for_its_request_alone_and_the_engine_is_reset",
    "`/ready` while models load or the server drains": (
        "test_while_it_drains_it_is_not_ready_and_closes_connections_but_answers"
    ),
    "the message says what it needs": "test_over_http_it_is_a_503_that_says_so_and_the_others_are_served",
    "has the entry of a model by any name": "test_a_model_is_found_by_every_name_of_it",
    "are ignored, and logged once by name": "test_unknown_fields_are_logged_once_by_name",
    "A misspelt variable ends the start": "test_a_misspelt_variable_is_refused_with_the_right_spelling",
    "are unloaded until it fits": "test_room_is_made_before_a_model_is_loaded_unless_others_are_in_use",
    "A model in use is never unloaded": "test_a_model_that_computes_for_a_client_that_left_counts_as_in_use",
    "A model counts with its weights as its engine stores them": (
        "test_what_a_model_costs_depends_on_its_engine_and_arithmetic"
    ),
    "a second, then two, four, up to a minute": "test_a_load_that_failed_is_tried_again_after_a_pause_that_grows",
    "ends it where they do not fit together": "test_what_is_preloaded_must_fit_together",
    "for as long as their model stays loaded": (
        "test_a_model_that_was_loaded_again_does_not_answer_from_what_the_old_one_gave"
    ),
    f"vectors of up to {answer_budget.SMALL >> 10} KiB are not counted": (
        "test_an_answer_holds_its_bytes_until_it_has_left_and_one_alone_may_be_larger"
    ),
    "Clients that left are in the log and in the metrics with status 499": (
        "test_a_client_that_leaves_before_its_answer_is_recorded_as_left"
    ),
    "have the engine and device of each model in memory": "test_a_server_says_which_engine_it_has",
    "one that is lost is left out while the others serve on": "test_a_lost_device_over_http",
    "never replaced by another": "test_a_reset_stays_in_the_same_engine",
    "A file that gives other vectors never becomes ready": "test_the_self_test_finds_engines_that_are_wrong",
    "as for anything else that keeps it from starting": "test_whatever_a_start_meets_ends_it_with_a_message",
    "finishes what was accepted": "test_sigterm_under_load_loses_nothing_and_exits_0",
    "the log says how many requests that were": "test_a_batch_that_does_not_end_does_not_hold_up_the_stop",
    "A second signal ends it at once": "test_a_second_sigterm_exits_at_once",
    "is a JSON object a line": "test_a_servers_log_says_it_in_json",
}
BULK = {
    "a rerun on another card resumes, a rerun on the CPU is refused": "test_what_a_device_is_to_a_job",
    "endings in capitals count too": "test_endings_count_in_any_case",
    "What is left out of it is counted and named at the end": "test_what_is_left_out_is_counted_and_named",
    "results of earlier jobs": "test_an_earlier_result_below_the_source_is_no_source",
    "a column or key that a file lacks is null": "test_the_schema_is_that_of_all_files",
    "UTF-16 and UTF-32 are refused by name": "test_bulk_refuses_other_encodings_whole",
    "what cannot be parsed also with its line": "test_a_json_line_is_rejected_with_its_line",
    "`--max-rejects N` ends the job": "test_max_rejects_ends_the_job_and_a_larger_one_goes_on",
    "with `--skip-bad-files` they are left out": "test_what_cannot_be_read_is_said_and_left_out_on_request",
    f"is `--shard-rows` rows ({SHARD_ROWS:,}; {IMAGE_SHARD_ROWS} with images)": "test_a_run_goes_on_and_ends_the_same",
    "on Ray, or on how often the job was killed": "test_the_driver_killed",
    "not on the number of workers": "test_four_workers_make_the_same_bytes",
    "**other settings, another model file or a changed source is refused**": "test_another_model_is_refused",
    f"its first or its last {EDGE_BYTES >> 10} KiB are different": "test_a_changed_source_is_refused",
    "Two runs cannot work in one folder at the same time": "test_two_runs_at_once_are_refused",
}
PAGES = {"SECURITY.md": SECURITY, "docs/server.md": SERVER, "docs/bulk.md": BULK}
EVERY = [(page, phrase, test) for page, phrases in PAGES.items() for phrase, test in phrases.items()]


def words(page: str) -> str:
    return " ".join((ROOT / page).read_text("utf-8").split())


@pytest.mark.parametrize(("page", "phrase", "test"), EVERY, ids=[f"{page}: {test[5:]}" for page, _, test in EVERY])
def test_a_promise_stands_in_its_page_and_a_test_holds_it(page: str, phrase: str, test: str) -> None:
    assert phrase in words(page), "the page no longer says so: change the phrase with it, or the page"
    assert test in known_tests(), "no such test: the page promises what nothing holds"


def known_tests() -> set[str]:
    files = (ROOT / "tests").rglob("test_*.py")
    return {name for file in files for name in re.findall(r"def (test_\w+)", file.read_text("utf-8"))}


def test_every_sentence_of_the_security_page_has_a_test() -> None:
    promised = words("SECURITY.md").partition("## Guarantees")[2].partition("## Not guaranteed")[0]
    sentences = [one for one in re.split(r"(?<=[.:;])\s+(?=[A-Z*-])", promised) if len(one.split()) > 4]
    assert len(sentences) > 10
    for sentence in sentences:
        assert any(phrase in sentence for phrase in SECURITY), sentence


def test_numbers_in_words_are_the_constants() -> None:
    """Two minutes to take an answer, a second to a minute between loads, five seconds until a file is known."""
    assert (connection.TAKE_TIMEOUT_S, model_pool.FIRST_PAUSE_S, model_pool.LONGEST_PAUSE_S) == (120, 1, 60)
    assert service.HOUSEKEEPING_S == 5
    for phrase in ("has two minutes to read its whole answer", "up to a minute", "is found within five seconds"):
        assert phrase in words("docs/server.md")
