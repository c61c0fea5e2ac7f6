"""What an RL run refuses, by name."""

import pytest

from .learner import config


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"advantage": "gae"}, "advantage is 'gae'"),
        ({"num_responses": 1}, "the baseline of rloo needs at least 2"),
        ({"clip_eps_high": 0.0}, "clip_eps_high"),
        ({"kl_coef": -0.1}, "kl_coef"),
        ({"kl_estimator": "k4"}, "kl_estimator is 'k4'"),
        ({"importance_cap": 0.0}, "importance_cap"),
        ({"microbatch_size": 3}, "microbatch_size is 3"),
        ({"row_tokens": 12}, "set it"),
        ({"tokens_per_microbatch": 11}, "tokens_per_microbatch is 11"),
        ({"tokens_per_microbatch": 24, "row_tokens": 11}, "row_tokens is 11"),
    ],
)
def test_impossible_options_are_refused_by_name(fields, named):
    with pytest.raises(ValueError, match=named):
        config(**fields)


def test_both_clips_follow_clip_eps_unless_they_are_set():
    assert config(clip_eps=0.3).clip_range == (0.3, 0.3)
    assert config(clip_eps_high=0.28).clip_range == (0.2, 0.28)
    assert config(clip_eps_low=0.1).clip_range == (0.1, 0.2)
