"""Names for the four kinds of NumPy arrays that the planner works on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Index = NDArray[np.intp]
Texts = NDArray[np.str_]
