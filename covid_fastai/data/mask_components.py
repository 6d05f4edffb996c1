"""Connected components of a mask, with numpy alone: SciPy is not in the environment that predicts."""

from __future__ import annotations

import numpy as np

__all__ = ["fill_holes", "label_components", "largest_component"]


def label_components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Label the 4-connected components of a mask, as `scipy.ndimage.label` does.

    Args:
        mask: `(h, w)` bool.

    Returns:
        The labels `(h, w)`, 0 outside the mask and 1 or more inside, and the number of pixels of each label from 0 on.
    """
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges == 1)  # the runs of each row, in order
    ends = np.nonzero(edges == -1)[1]
    parent = list(range(len(rows)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = run = parent[parent[run]]
        return run

    first = np.searchsorted(rows, np.arange(mask.shape[0] + 1)).tolist()  # the first run of each row
    begins, finishes = starts.tolist(), ends.tolist()
    for row in range(1, mask.shape[0]):
        above, here = first[row - 1], first[row]
        while above < first[row] and here < first[row + 1]:
            if begins[above] < finishes[here] and begins[here] < finishes[above]:
                one, other = root(above), root(here)
                parent[max(one, other)] = min(one, other)
            if finishes[above] < finishes[here]:
                above += 1
            else:
                here += 1
    roots, numbers = np.unique([root(run) for run in range(len(rows))], return_inverse=True)
    # Each run adds its label where it starts and subtracts it where it ends; the sum along the row is the label.
    steps = np.zeros((mask.shape[0], mask.shape[1] + 1), dtype=np.int64)
    np.add.at(steps, (rows, starts), numbers + 1)
    np.add.at(steps, (rows, ends), -numbers - 1)
    labels = steps.cumsum(axis=1)[:, :-1]
    return labels, np.bincount(labels.ravel(), minlength=len(roots) + 1)


def largest_component(mask: np.ndarray) -> np.ndarray:
    """Return the largest component of a mask, `(h, w)` bool; an empty mask stays empty."""
    labels, sizes = label_components(mask)
    return labels == 1 + sizes[1:].argmax() if len(sizes) > 1 else np.zeros_like(mask)


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """Return a mask with its holes filled: the background that does not reach the edge of the image."""
    labels, sizes = label_components(~mask)
    reaches = np.zeros(len(sizes), dtype=bool)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        reaches[edge] = True
    return mask | ~reaches[labels]
