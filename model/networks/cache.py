"""A key-value cache: each layer's keys and values of the tokens read so far, so that only new tokens are computed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from bardflow.errors import BardError


class CacheFull(BardError):
    """More tokens were given than there is room for in the context."""


@dataclass(frozen=True)
class Reach:
    """The positions of the next T tokens of each row, and which tokens each of them attends to.

    `start` is the first new position if all rows have the same length; else it is None, and `rows_B1` and
    `positions_BT` give the place of each token. `end` is one past the last position of the longest row. `visible` is
    the attention mask (True: attended to), or None if `causal` describes it fully.
    """

    start: int | None
    end: int
    rows_B1: Tensor | None
    positions_BT: Tensor | None
    visible: Tensor | None
    causal: bool

    def of(self, table_SX: Tensor) -> Tensor:
        """The new tokens' rows of a table by position: (T, X) if all rows have the same positions, else (B, T, X)."""
        if self.positions_BT is None:
            return table_SX[self.start : self.end]
        return table_SX[self.positions_BT]


class KeyValueCache:
    """Keys and values of up to `context` tokens of each of B rows: (B, H, context, D) per layer, allocated once in f32.

    `layers` counts the blocks with attention. Each block with a convolution needs the values of a few tokens before a
    new one, and the cache keeps those too: `recent` has the number of tokens and of channels for each such block.

    Rows are independent: each has its own length and can be cleared alone. A row takes 2 * layers * context * width * 4
    bytes: 18 MiB for 6 layers, context 1,024 and width 384.
    """

    def __init__(
        self,
        *,
        layers: int,
        rows: int,
        heads: int,
        context: int,
        head_width: int,
        device: str,
        recent: Sequence[tuple[int, int]] = (),
    ) -> None:
        shape = (rows, heads, context, head_width)
        # Zeros instead of uninitialised memory: a NaN at a masked position would reach the output (0 * NaN is NaN).
        self.keys = [torch.zeros(shape, device=device) for _ in range(layers)]
        self.values = [torch.zeros(shape, device=device) for _ in range(layers)]
        self.recent = [torch.zeros(rows, tokens, channels, device=device) for tokens, channels in recent]
        self.lengths: npt.NDArray[np.int64] = np.zeros(rows, np.int64)
        self.context, self.device = context, device

    def row(self, b: int) -> Self:
        """Return a cache of one row in the same memory; tokens added to it are also in this cache."""
        view = object.__new__(type(self))
        view.keys = [keys[b : b + 1] for keys in self.keys]
        view.values = [values[b : b + 1] for values in self.values]
        view.recent = [recent[b : b + 1] for recent in self.recent]
        view.context, view.device = self.context, self.device
        view.lengths = self.lengths[b : b + 1]
        return view

    def clear(self, b: int) -> None:
        """Remove all tokens of row b."""
        self.lengths[b] = 0
        for recent_BKC in self.recent:
            recent_BKC[b] = 0

    def after_recent(self, number: int, x_BTC: Tensor) -> Tensor:
        """Return a convolution's new inputs after the recent ones, which are zeros before the first token.

        The last of them are the recent ones of the next call.
        """
        recent_BKC = self.recent[number]
        together_BSC = torch.cat((recent_BKC, x_BTC), dim=1)
        recent_BKC.copy_(together_BSC[:, -recent_BKC.shape[1] :])
        return together_BSC

    def reach(self, T: int) -> Reach:
        """Return the positions of the next T tokens of each row.

        Raises:
            CacheFull: a row has no room for them.
        """
        start, longest = int(self.lengths.min()), int(self.lengths.max())
        end = longest + T
        if end > self.context:
            raise CacheFull(
                f"{T} more tokens were given to a row that has read {longest}, but a model of context {self.context} "
                "sees no more than that at once; clear the row and read again what should stay in view"
            )
        device = self.device
        alike = start == longest
        if alike and (T == 1 or start == 0):
            return Reach(start, end, None, None, visible=None, causal=T > 1)
        positions_BT = torch.from_numpy(self.lengths[:, None] + np.arange(T)).to(device)
        visible = (torch.arange(end, device=device) <= positions_BT[..., None])[:, None]
        if alike:
            return Reach(start, end, None, None, visible, causal=False)
        rows_B1 = torch.arange(len(self.lengths), device=device)[:, None]
        return Reach(None, end, rows_B1, positions_BT, visible, causal=False)

    def attend(self, layer: int, q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, reach: Reach) -> Tensor:
        """Store the new keys and values, and return the attention output of the new tokens: (B, T, H * D)."""
        B, H, T, D = q_BHTD.shape
        keys_BHSD, values_BHSD = self.keys[layer], self.values[layer]
        if reach.positions_BT is None:
            keys_BHSD[:, :, reach.start : reach.end] = k_BHTD
            values_BHSD[:, :, reach.start : reach.end] = v_BHTD
        else:
            keys_BHSD[reach.rows_B1, :, reach.positions_BT] = k_BHTD.transpose(1, 2)
            values_BHSD[reach.rows_B1, :, reach.positions_BT] = v_BHTD.transpose(1, 2)
        attended_BHTD = F.scaled_dot_product_attention(
            q_BHTD,
            keys_BHSD[:, :, : reach.end],
            values_BHSD[:, :, : reach.end],
            attn_mask=reach.visible,
            is_causal=reach.causal,
        )
        return attended_BHTD.transpose(1, 2).reshape(B, T, H * D)

    def advance(self, T: int) -> None:
        """Add T to the length of every row."""
        self.lengths += T
