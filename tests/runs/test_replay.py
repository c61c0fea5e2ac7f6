"""The golden update, through the trainer's own functions; and that a wrong number is noticed."""

import json
import shutil

import numpy as np
import pytest

from jaxmath.runs import replay


@pytest.fixture(scope="module")
def case_folder(shared):
    return shared / "golden" / "prime_step"


@pytest.fixture(scope="module")
def case(case_folder):
    return replay.read_case(case_folder)


@pytest.fixture(scope="module")
def ours(case_folder, case):
    return replay.replay(case_folder, case)


def test_golden_update_agrees_to_a_ten_thousandth(case, ours):
    errors = {
        name: replay.compare(name, value, ours[name]).error
        for name, value in case["expected"].items()
    }
    assert len(errors) == 17 and max(errors.values()) <= 1e-4, errors


def test_log_probabilities_agree_before_and_after_the_update(case, ours):
    for name in ("policy", "prm"):
        before, after = f"{name}_logprobs", f"{name}_logprobs_after"
        moved = [np.subtract(a, b) for a, b in zip(ours[after], ours[before], strict=True)]
        assert np.max(np.abs(np.concatenate(moved))) > 0.1  # so the comparison says something
        expected = case["expected"][after]
        for got, want in zip(ours[after], expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5)


def test_run_prints_every_number_and_fails_past_the_tolerance(case_folder, case, capsys):
    assert replay.run(case_folder) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in case["expected"]) and "17 of 17" in printed
    assert replay.run(case_folder, tolerance=1e-9) == 1
    assert "PAST TOLERANCE" in capsys.readouterr().out


def test_another_setting_is_another_update(case_folder, case):
    other = case | {"settings": case["settings"] | {"prm_update": "before"}}
    ours = replay.replay(case_folder, other)
    expected = case["expected"]
    assert replay.compare("prm_loss", expected["prm_loss"], ours["prm_loss"]).error < 1e-6
    assert replay.compare("returns", expected["returns"], ours["returns"]).error > 0.01


def test_errors_are_relative_and_a_nan_is_the_worst():
    row = replay.compare("x", [[1.0, 2.0], [4.0]], [np.array([1.0, 2.2]), np.array([4.1])])
    assert (row.expected, row.ours) == (2.0, 2.2)
    np.testing.assert_allclose(row.error, 0.1)
    assert np.isnan(replay.compare("x", [[1.0, 2.0]], [np.array([9.0, np.nan])]).error)
    near_zero = replay.compare("x", [[1e-9, 100.0]], [np.array([1e-6, 100.0])])
    np.testing.assert_allclose(near_zero.error, 1e-6, rtol=2e-3)
    with pytest.raises(ValueError, match=r"rows of \[2\] numbers; expected \[1\]"):
        replay.compare("x", [[1.0, 2.0]], [np.array([1.0])])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy_updates": 2}, "only 1 can be replayed"),
        ({"granularity": "word"}, "prm_granularity is 'word'"),
        ({"n_samples": None}, "have no 'n_samples'"),
    ],
)
def test_settings_that_are_not_ours_are_refused(case, change, message):
    settings = {k: v for k, v in (case["settings"] | change).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        replay.make_config(settings, case["samples"])


def test_a_folder_that_is_no_case_is_refused(tmp_path, case_folder):
    with pytest.raises(ValueError, match="cannot be read"):
        replay.run(tmp_path)
    (tmp_path / "case.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        replay.run(tmp_path)
    (tmp_path / "case.json").write_text('{"settings": {}}')
    with pytest.raises(ValueError, match="no expected, samples"):
        replay.run(tmp_path)
    full = tmp_path / "full"
    shutil.copytree(case_folder, full, copy_function=shutil.copyfile)
    known = json.loads((case_folder / "case.json").read_text())
    known["expected"]["entropy"] = 1.0
    (full / "case.json").write_text(json.dumps(known))
    with pytest.raises(ValueError, match="expects entropy"):
        replay.run(full)
