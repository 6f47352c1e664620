"""Images that mean the same though their pixels differ: cosine of embeddings, within clusters.

Pure: arrays in, arrays out. Only images of one k-means cluster are compared, which keeps the cost near-linear. A pair
that lies in two clusters is not found; SemDeDup accepts the same loss. k-means comes from scikit-learn.

Source: Abbas, Tirumala, Simig, Ganguli, Morcos: SemDeDup, arXiv 2303.09540.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]  # (N, D), rows of length 1

_COMPARE_ROWS = 2048
ASSIGN_ROWS = 2048


def train_centroids(sample: Vectors, num_clusters: int, seed: int) -> Vectors:
    """Directions (num_clusters, D) of a k-means over a sample of embeddings."""
    from sklearn.cluster import MiniBatchKMeans

    num_clusters = max(1, min(num_clusters, len(sample)))
    means = MiniBatchKMeans(num_clusters, random_state=seed, n_init=1, batch_size=4096).fit(sample).cluster_centers_
    return unit(means.astype(np.float32))


def unit(vectors: npt.NDArray[np.floating]) -> Vectors:
    """Rows brought to length 1."""
    wide = vectors.astype(np.float32)
    lengths: Vectors = np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12).astype(np.float32)
    return wide / lengths


def assign(vectors: Vectors, centroids: Vectors) -> npt.NDArray[np.int32]:
    """Return the nearest centroid of each row, (N,). It does not depend on the other rows."""
    labels = np.empty(len(vectors), np.int32)
    block = np.zeros((ASSIGN_ROWS, centroids.shape[1]), np.float32)  # one shape: a product sums in an order of its own
    for start in range(0, len(vectors), ASSIGN_ROWS):
        some = vectors[start : start + ASSIGN_ROWS]
        block[: len(some)] = some
        labels[start : start + len(some)] = (block @ centroids.T).argmax(axis=1)[: len(some)]
    return labels


def close_pairs(
    vectors: Vectors, labels: npt.NDArray[np.int32], threshold: float
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Vectors]]:
    """Rows i < j of one cluster with a cosine of at least `threshold`, and that cosine, some at a time."""
    order = np.argsort(labels, kind="stable")
    borders = np.flatnonzero(np.diff(labels[order])) + 1
    for members in np.split(order, borders):
        for start in range(0, len(members), _COMPARE_ROWS):
            rows = members[start : start + _COMPARE_ROWS]
            cosine = vectors[rows] @ vectors[members[start:]].T
            i, j = np.nonzero(np.triu(cosine >= threshold, 1))
            if len(i):
                yield rows[i], members[start:][j], cosine[i, j]
