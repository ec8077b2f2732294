"""The recipe of an encoder's features: everything that can change one of their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from gridvlp.errors import UserError
from gridvlp.extract.backbone import STRIDE, Architecture
from gridvlp.extract.photo_decoding import DECODE_VERSION

GRID_LAYER = "res5 after ReLU"
REGION_LAYER = "res5 on 14 x 14 RoIAlign of res4, mean"


@dataclass(frozen=True)
class Resize:
    """How photos are resized: by the arithmetic of Detectron2's ResizeShortestEdge."""

    shorter: int
    longest: int
    filter: str = "bilinear"
    padding: str = "none"

    @property
    def text(self) -> str:
        """As --size takes it."""
        return f"{self.shorter}x{self.longest}"


@dataclass(frozen=True)
class RegionChoice:
    """Which proposals of a detector become regions."""

    most: int
    proposals: int
    nms: float
    boxes: str = "proposals"


@dataclass(frozen=True)
class Recipe:
    """What a store keeps of its encoder, so that its maps can be trusted and made again.

    A field that is added here is compared wherever recipes are, and enters every digest.

    Attributes:
        name: of the encoder, as its folder or checkpoint file has it.
        weights_sha256: of the file, or of random weights.
        architecture: of the backbone, with the mean, deviation and order of its pixels.
        resize: of the photos.
        precision: of the convolutions: bfloat16, float16 or float32.
        tf32: whether float32 products are rounded to TF32; never here.
        decode: version of the rules that turn a file into RGB (``DECODE_VERSION``).
        pixel_range: of the pixels that the mean is of.
        regions: of a detector of regions; None of grids.
    """

    name: str
    weights_sha256: str
    architecture: Architecture
    resize: Resize
    precision: str
    tf32: bool = False
    decode: int = DECODE_VERSION
    pixel_range: str = "0-255"
    regions: RegionChoice | None = None

    def as_encoder(self) -> dict[str, Any]:
        """The recipe as the store's ``encoder``: JSON values, by name."""
        values = asdict(self)
        if self.regions is None:
            del values["regions"]
            return {**values, "layer": GRID_LAYER, "stride": STRIDE}
        return {**values, "layer": REGION_LAYER}

    @classmethod
    def from_encoder(cls, encoder: Mapping[str, Any], where: object) -> Recipe:
        """The recipe of a store that ``extract`` filled.

        Args:
            encoder: of the store.
            where: names the store in an error.

        Raises:
            UserError: another program made the features, or another version of this one.
        """
        try:
            values = {k: v for k, v in encoder.items() if k not in ("layer", "stride")}
            architecture: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in values.pop("architecture").items()
            }
            regions = values.pop("regions", None)
            recipe = cls(
                architecture=Architecture(**architecture),
                resize=Resize(**values.pop("resize")),
                regions=None if regions is None else RegionChoice(**regions),
                **values,
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{where} cannot be made again: they were not extracted by this version of gridvlp."
            ) from error
        return recipe

    @property
    def dtype(self) -> torch.dtype:
        """The precision as torch names it."""
        dtype: torch.dtype = getattr(torch, self.precision)
        return dtype
