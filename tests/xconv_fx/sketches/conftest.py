from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from xconv_fx.sketches.tile_rows import ROWS_OF_A_WORD, Rows


@pytest.fixture
def numbers_of() -> Callable[[Rows, Tensor, int], Tensor]:
    """`numbers_of(rows, words, num_rows)` are the numbers k of rows, ``(R, *words)``."""

    def read(rows: Rows, words: Tensor, num_rows: int) -> Tensor:
        numbers = torch.zeros([num_rows, *words.shape], dtype=torch.int64)
        for place, packed in enumerate(rows.bits):
            for row in range(num_rows):
                word = torch.as_tensor(packed[row // ROWS_OF_A_WORD])
                numbers[row] += (word >> row % ROWS_OF_A_WORD & 1).long() << place
        return numbers

    return read
