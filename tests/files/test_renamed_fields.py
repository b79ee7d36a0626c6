# SPDX-License-Identifier: Apache-2.0
"""Renamed fields of `results.json` stand under both names, and a record with either name is read."""

import pytest

from lightning_recon.files.renamed_fields import fields_with_both_names, record_with_both_names

OLD = {
    "attack": "ours",
    "alarms": ["a"],
    "bounds": {"noise_law_psnr_5_percent": 1.0},
    "summary": {"received_share": 0.5},
}
NEW = {
    "attack": "ours",
    "payload_alarms": ["a"],
    "bounds": {"noise_law_psnr_p95": 1.0},
    "summary": {"file_decoded_fraction": 0.5},
}
BOTH = {
    "attack": "ours",
    "alarms": ["a"],
    "payload_alarms": ["a"],
    "bounds": {"noise_law_psnr_5_percent": 1.0, "noise_law_psnr_p95": 1.0},
    "summary": {"received_share": 0.5, "file_decoded_fraction": 0.5},
}


@pytest.mark.parametrize("record", [OLD, NEW, BOTH])
def test_a_record_with_either_name_has_both(record: dict[str, object]) -> None:
    found = record_with_both_names(record)
    assert found == BOTH
    assert list(found) == list(BOTH)  # the other fields keep their places


def test_nothing_is_added_where_the_field_is_not_there() -> None:
    record = {"attack": "ours", "bounds": None, "summary": {"victims": 1}}
    assert record_with_both_names(record) == record


def test_a_table_has_the_fields_of_all_sections() -> None:
    row = fields_with_both_names({"cell": "a", "payload_alarms": "none", "file_decoded_fraction": 1.0})
    assert list(row) == ["cell", "alarms", "payload_alarms", "received_share", "file_decoded_fraction"]
