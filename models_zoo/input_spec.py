"""What a model accepts as its input: channels, number of spatial dims, sizes.

Owns the one statement of a model's input shape, used by the model's ``forward`` to refuse a
tensor that does not fit and by the registry to size example inputs. Comes in: the numbers, from
the model's constructor. Goes out: checks, and sizes that fit. Dtype and device are left to torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from models_zoo.errors import InputShapeError

_AXES = {1: "L", 2: "H, W", 3: "D, H, W"}


@dataclass(frozen=True)
class InputSpec:
    """The input that one built model accepts.

    Args:
        model: the model's registry name, for error texts.
        in_channels: C of the input ``(N, C, *spatial)``.
        num_spatial_dims: number of spatial dims, 2 for ``(N, C, H, W)``.
        least_size: the least length of each spatial side, in pixels.
        multiple: each spatial side must be a multiple of this.
        fixed_size: the only spatial size accepted, or None when the size is free.
        hint: what a caller with a too small image can do, for the error text.
    """

    model: str
    in_channels: int
    num_spatial_dims: int = 2
    least_size: int = 1
    multiple: int = 1
    fixed_size: tuple[int, ...] | None = None
    hint: str = "use a larger image"

    def check(self, x: Tensor) -> None:
        """Refuse a tensor that the model cannot take.

        Args:
            x: the input, expected as ``(N, in_channels, *spatial)``.

        Raises:
            InputShapeError: wrong number of dims or channels, or a spatial size that is too
                small, not a multiple, or not the fixed one.
        """
        if x.ndim != self.num_spatial_dims + 2 or x.shape[1] != self.in_channels:
            axes = _AXES[self.num_spatial_dims]
            raise InputShapeError(
                f"{self.model}: expected an input of shape (N, {self.in_channels}, {axes}), "
                f"got {tuple(x.shape)}"
            )
        self.check_size(x.shape[2:])

    def check_size(self, size: Sequence[int]) -> None:
        """Refuse a spatial size that the model cannot take.

        Args:
            size: the length of each spatial side, in pixels.

        Raises:
            InputShapeError: wrong number of sides, or a side that is too small, not a multiple,
                or not the fixed one; the text says the least size or the multiple.
        """
        if len(size) != self.num_spatial_dims:
            raise InputShapeError(
                f"{self.model}: expected {self.num_spatial_dims} spatial sides, got {tuple(size)}"
            )
        if self.fixed_size is not None:
            if tuple(size) != self.fixed_size:
                raise InputShapeError(
                    f"{self.model}: expected the spatial size {self.fixed_size}, "
                    f"fixed when the model was built, got {tuple(size)}"
                )
            return
        for length in size:
            if length < self.least_size:
                raise InputShapeError(
                    f"{self.model}: spatial size {tuple(size)} is too small for the "
                    f"downsampling: the least size is {self.least_size} a side; {self.hint}"
                )
            if length % self.multiple != 0:
                raise InputShapeError(
                    f"{self.model}: spatial size {tuple(size)} does not divide: each side must be "
                    f"a multiple of {self.multiple}; pad or crop the image"
                )

    def fit(self, size: Sequence[int]) -> tuple[int, ...]:
        """The least spatial size that the model accepts and that is not below ``size``.

        Args:
            size: the wished length of each spatial side, in pixels.

        Returns:
            The fixed size where there is one, else each side raised to the least size and to the
            next multiple.
        """
        if self.fixed_size is not None:
            return self.fixed_size
        raised = (max(length, self.least_size) for length in size)
        return tuple(-(-length // self.multiple) * self.multiple for length in raised)
