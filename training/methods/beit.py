"""BEiT: say which visual word stands where patches were masked (Bao et al. 2022, arXiv 2106.08254).

The words are not those of the paper, whose tokenizer is DALL-E's dVAE: here they are the centres of k-means on the
pixel patches of the training pictures themselves, learnt before the training begins. A patch has the word of the centre
nearest to its pixels, which says colour and edges rather than what is depicted.

Shapes: B pictures, N patches, M masked ones, P numbers of a patch's pixels, D width of the encoder, K words.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from granary.curation.errors import UserError
from granary.curation.options import Options as OptionGroup
from granary.curation.selection.clusters import train_kmeans
from granary.curation.store import storage
from granary.training.data.augment import Photometric, normalised, to_unit
from granary.training.data.collate import Part
from granary.training.data.crops import Crop
from granary.training.data.loader import BatchPlan, batches
from granary.training.losses.reconstruction import nearest_codes, patchify
from granary.training.masked_images import MaskedOptions, MaskTokens
from granary.training.masking.block_wise import draw_block_mask
from granary.training.masking.random_patches import masked_count
from granary.training.method import Moment
from granary.training.models.backbone_config import BackboneConfig
from granary.training.models.vit import gather_tokens
from granary.training.models.vit_config import ViTConfig

CODEBOOK = "codebook.npy"  # in the training directory


class BEiTOptions(MaskedOptions, frozen=True):
    """Options of BEiT; defaults are the paper's for ImageNet, but for the words."""

    codes: int = Field(8192, ge=2, description="K, words: centres of k-means; patches that differ less give fewer")
    codebook_pictures: int = Field(1024, ge=1, description="pictures whose patches k-means is run on")
    mask_ratio: float = Field(0.4, gt=0, lt=1, description="share of the patches that are masked")
    smallest_block: int = Field(16, ge=1, description="least patches of a block that is masked as one")
    crop_scale: tuple[float, float] = Field((0.08, 1.0), description="share of the picture's area in a crop")
    strength: float = Field(0.4, ge=0, le=1, description="change of brightness, contrast and saturation")


class BEiT(MaskTokens):
    """Encoder with mask tokens, and a linear layer from a token to the words.

    Args:
        config, options: as in `Method`.
        known: the codebook (K, P) float32 that `learn` made; None for one of zeros.
    """

    Options = BEiTOptions
    options: BEiTOptions
    codebook: Tensor

    def __init__(self, config: ViTConfig, options: BEiTOptions, known: NDArray[np.float32] | None = None) -> None:
        super().__init__(config, options, known)
        size = 3 * config.patch_size**2
        codebook = torch.zeros(options.codes, size) if known is None else torch.tensor(known)
        if codebook.shape[1] != size:
            raise UserError(f"out: its {CODEBOOK} is of patches of another size; give another out")
        self.register_buffer("codebook", codebook)
        self.head = nn.Linear(config.width, len(codebook))
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def learn(
        cls, config: BackboneConfig, options: OptionGroup, plan: BatchPlan, out: str
    ) -> NDArray[np.float32] | None:
        """Return the codebook: that of the run that goes on in `out`, or one learnt now.

        It is learnt on the crops of the first steps, every process for itself: the same seed gives the same codebook.

        Raises:
            UserError: the codebook in `out` is damaged.
        """
        assert isinstance(options, BEiTOptions)
        assert isinstance(config, ViTConfig)
        return learn_codebook(config, options.codes, options.codebook_pictures, options.crop_scale, plan, out)

    @property
    def remembered(self) -> None:
        """Nothing: the codebook is among the weights."""

    @classmethod
    def recalled(cls, remembered: object, weights: Mapping[str, Tensor]) -> NDArray[np.float32]:
        """Return the codebook."""
        return weights["codebook"].float().cpu().numpy()

    @classmethod
    def imagined(cls, options: OptionGroup) -> None:
        """Nothing: without data all words are zeros."""

    @property
    def files(self) -> dict[str, bytes]:
        """The codebook: a run that goes on does not learn it anew."""
        return {CODEBOOK: codebook_file(self.codebook)}

    def draw_mask(self, generator: np.random.Generator) -> NDArray[np.bool_]:
        """Return a mask of random blocks, (N,)."""
        count = masked_count(self.config.grid**2, self.options.mask_ratio)
        return draw_block_mask(self.config.grid, count, self.options.smallest_block, generator)

    def changes(self) -> Photometric:
        """Return what is done to a crop: it may be mirrored, and its colours change, those of its words too."""
        s = self.options.strength
        return Photometric(
            flip=self.options.flip, jitter=1.0, brightness=s, contrast=s, saturation=s, hue=0.0, grey=0.0, blur=0.0
        )

    def forward(self, batch: Part, moment: Moment) -> dict[str, Tensor]:
        """Return the loss of a batch under masks drawn for this moment, and the share of words that were guessed."""
        pixels, masked = self.pixels(batch), self.masks(batch, moment)
        places = (~masked).byte().argsort(dim=1, stable=True)[:, : self.masked_patches]  # (B, M), in their order
        words = nearest_codes(gather_tokens(patchify(pixels, self.config.patch_size), places), self.codebook)
        tokens = self.encoder(pixels, masked=masked).patches
        logits = self.head(gather_tokens(tokens, places))  # (B, M, K)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), words.flatten())
        right = (logits.detach().argmax(dim=2) == words).float().mean()
        return {"loss": loss, "accuracy": right, "features": tokens.mean(dim=1).detach()}


def learn_codebook(
    config: ViTConfig, codes: int, pictures: int, crop_scale: tuple[float, float], plan: BatchPlan, out: str
) -> NDArray[np.float32]:
    """Return the centres of k-means on the patches of pictures, (K, P) float32: those in `out`, or learnt now.

    It is learnt on the crops of the first steps, every process for itself: the same seed gives the same codebook.

    Args:
        config: of the image encoder: patches, and how pictures are normalised.
        codes: K at most.
        pictures: whose patches are taken.
        crop_scale: share of a picture's area in a crop.
        plan: of the run.
        out: the training directory.

    Raises:
        UserError: the codebook in `out` is damaged.
    """
    earlier = storage.join(out, CODEBOOK)
    if storage.exists(earlier):
        return read_codebook(earlier)
    crop, steps = Crop(1, config.img_size, crop_scale), range(math.ceil(pictures / plan.batch))
    views = [part["image"][:, 0] for part in batches(plan._replace(crops={"image": crop}), steps, workers=0)]
    pixels = normalised(to_unit(torch.cat(views)[:pictures]), config.mean, config.std)
    patches = patchify(pixels, config.patch_size).flatten(0, 1).numpy()
    return train_kmeans(patches, codes, plan.seed, spherical=False)


def codebook_file(codebook: Tensor) -> bytes:
    """Return a codebook (K, P) as the file that `read_codebook` reads."""
    file = io.BytesIO()
    np.save(file, codebook.cpu().numpy())
    return file.getvalue()


def read_codebook(url: str) -> NDArray[np.float32]:
    """Return the codebook of a training directory, (K, P) float32. Raises UserError where it cannot be read."""
    try:
        codebook: NDArray[np.float32] = np.load(io.BytesIO(storage.read_bytes(url)), allow_pickle=False)
        return codebook
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"out: {url} is damaged ({error}); delete it, and it is learnt again") from error
