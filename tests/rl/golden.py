"""Golden A and C: numbers made by executing the released PRIME functions; one prompt, n = 4."""

import numpy as np

FILL = 9.0  # in every masked place, so that a mask that is forgotten shows
LENGTHS = (5, 3, 4, 2)
OUTCOME_B = np.array([1, 0, 1, 0], np.float32)
BETA = 0.05


def ragged(*rows) -> np.ndarray:
    return np.array([(*row, *[FILL] * (5 - len(row))) for row in rows], np.float32)


MASK_BT = (np.arange(5)[None, :] < np.array(LENGTHS)[:, None]).astype(np.float32)
SCORE_BT = ragged(
    (0.5, -0.25, 0.75, 0.25, -0.125), (-0.5, 0.25, -1.0), (0.125, 0.375, -0.25, 0.5), (-0.75, -0.25)
)
RETURNS_BT = ragged(
    (2.538888, 1.871110, 2.003332, 1.068889, 0.667778),
    (-1.596666, -1.197777, -1.598888),
    (2.004443, 1.736666, 1.202222, 1.334444),
    (-1.464444, -0.798889),
)
ADVANTAGE_BT = ragged(
    (1.288447, 0.854738, 0.940614, 0.333710, 0.073196),
    (-1.397519, -1.138448, -1.398962),
    (0.941335, 0.767419, 0.420307, 0.506183),
    (-1.311643, -0.879377),
)
LOG_RATIO_BT = ragged(
    (0, 0.3, -0.3, 0.05, -0.05), (0.1, -0.25, 0), (0.25, -0.1, 0, 0.2), (-0.3, 0.15)
)


def on_mask(x_BT) -> np.ndarray:
    return np.asarray(x_BT)[MASK_BT > 0]
