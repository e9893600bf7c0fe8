"""Learned mask codes (SMT in ISTR's journal version). M masks of S x S pixels, S = 112; L length of a code."""

import copy
import logging
import tempfile
from collections.abc import Iterable
from typing import Optional

import numpy as np
import torch
from detectron2.config import configurable
from torch import nn
from tqdm import tqdm

from ...checkpoint.formats import load_torch
from ...errors import CheckpointError, DatasetError
from ...files import atomic_write
from ...layers import conv_norm_elu
from .embedding import MASK_EMBEDDING_REGISTRY, MaskEmbedding, mask_dice_losses, reconstruction_ious

logger = logging.getLogger(__name__)

SIZE = 112  # halved four times it is 7, the kernel size of the innermost layers
ROI_LAYER = 5  # index of the decoder's second upsampling, to 32 channels of 28 x 28


class UpBlock(nn.Module):
    """Bilinear upsampling, 3x3 convolution, batch norm, ELU: (M, C, h, w) -> (M, C', 2h, 2w)."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.up = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            *conv_norm_elu(in_channels, channels, 3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(x)


def mask_encoder(dim: int) -> nn.Sequential:
    """Masks (M, 1, S, S) -> codes (M, L)."""
    channels = (1, 16, 32, 64, 128)
    layers = [layer for pair in zip(channels, channels[1:]) for layer in conv_norm_elu(*pair, 4, stride=2)]
    return nn.Sequential(*layers, nn.Conv2d(channels[-1], dim, 7), nn.Flatten())


def mask_decoder(dim: int) -> nn.Sequential:
    """Codes (M, L) -> mask logits (M, 1, S, S)."""
    return nn.Sequential(
        nn.Unflatten(1, (dim, 1, 1)),
        nn.ConvTranspose2d(dim, 128, 7),
        nn.BatchNorm2d(128),
        nn.ELU(inplace=True),
        *(UpBlock(before, after) for before, after in ((128, 64), (64, 32), (32, 16), (16, 16))),
        nn.Conv2d(16, 1, 1),
    )


@MASK_EMBEDDING_REGISTRY.register()
class AE(MaskEmbedding):
    """
    An auto-encoder of masks, trained on its own by `fit`. In the detector the encoder is frozen and stays in eval mode;
    the decoder is trained further, with an RoI feature added at 28 x 28.
    """

    roi_channels = 32  # the channels after ROI_LAYER

    @configurable
    def __init__(self, *, dim: int, size: int = SIZE, freeze_encoder_bn: bool = True, fit_epochs: int = 30):
        """
        Args:
            freeze_encoder_bn: if False, the running statistics of the frozen encoder are still updated in training, as
                in the authors' code.
            fit_epochs: default epochs of `fit`.
        """
        if size != SIZE:
            raise ValueError(f"size is {size}; the AE embedding needs {SIZE}")
        super().__init__(dim=dim, size=size)
        self.freeze_encoder_bn = freeze_encoder_bn
        self.fit_epochs = fit_epochs
        self.encoder = mask_encoder(dim).requires_grad_(False)
        self.decoder = mask_decoder(dim)
        self.train()

    @classmethod
    def from_config(cls, cfg):
        node = cfg.MODEL.ISTR
        return {
            **super().from_config(cfg),
            "freeze_encoder_bn": node.FREEZE_ENCODER_BN,
            "fit_epochs": node.FIT_EPOCHS,
        }

    @property
    def fitted(self) -> bool:
        """True once the encoder's batch norm has seen masks."""
        return bool(self.encoder[1].num_batches_tracked > 0)

    def train(self, mode: bool = True):
        super().train(mode)
        if self.freeze_encoder_bn:
            self.encoder.eval()
        return self

    def _encode(self, masks):
        return self.encoder(masks[:, None])

    def decode(self, codes: torch.Tensor, roi_features: Optional[torch.Tensor] = None) -> torch.Tensor:
        """
        Args:
            codes: (M, L).
            roi_features: (M, 32, 28, 28), added after the second upsampling, or None.

        Returns:
            probabilities (M, S, S), float32.
        """
        x = codes
        for i, layer in enumerate(self.decoder):
            x = layer(x)
            if i == ROI_LAYER and roi_features is not None:
                x = x + roi_features
        return x[:, 0].float().sigmoid()

    def fit(
        self,
        mask_batches: Iterable,
        *,
        epochs: Optional[int] = None,
        batch_size: int = 1024,
        learning_rate: float = 1e-3,
        held_out: Optional[torch.Tensor] = None,
        seed: int = 0,
    ) -> None:
        """
        Train encoder and decoder with the dice loss and Adam; the learning rate drops by 10 after one and two thirds of
        the epochs. Keeps the weights of the epoch with the best mean IoU.

        Args:
            mask_batches: see `MaskEmbedding.fit`; copied to a temporary file with 8 pixels per byte.
            epochs: default: ``fit_epochs``.
            batch_size: masks per step; reduced, down to 32, if an epoch would have fewer than 100 steps.
            held_out: (m, S, S) masks for the IoU, at threshold 0.5; default: the first 1000 training masks.
            seed: of the order of the masks.

        Raises:
            DatasetError: there are no masks.
        """
        masks = PackedMasks(mask_batches, self.size)
        if not len(masks):
            raise DatasetError("the AE mask embedding is fitted to masks, but the training set has none.")
        epochs = self.fit_epochs if epochs is None else epochs
        batch_size = min(batch_size, max(32, len(masks) // 100))
        check = masks[:1000] if held_out is None else held_out
        device = next(self.decoder.parameters()).device
        was_training = self.training
        trained = nn.ModuleList([self.encoder, self.decoder]).requires_grad_(True)
        optimizer = torch.optim.Adam(trained.parameters(), lr=learning_rate)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [max(epochs // 3, 1), max(2 * epochs // 3, 2)])
        generator = torch.Generator().manual_seed(seed)
        best_iou, best = -1.0, None
        with torch.autocast(device.type, enabled=False), torch.enable_grad():
            for epoch in range(epochs):
                trained.train()
                order = torch.randperm(len(masks), generator=generator).split(batch_size)
                for index in tqdm(order, f"epoch {epoch + 1}/{epochs}", disable=None, leave=False):
                    x = masks[index.sort().values.numpy()].to(device)
                    loss = mask_dice_losses(self.decode(self._encode(x)), x).mean()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                schedule.step()
                iou = reconstruction_ious(self, check.split(256)).mean().item()
                logger.info("Epoch %d of %d: dice loss %.4f, mean IoU %.4f", epoch + 1, epochs, loss.item(), iou)
                if iou > best_iou:
                    best_iou, best = iou, copy.deepcopy(self.state_dict())
        if best is not None:
            self.load_state_dict(best)
        self.zero_grad(set_to_none=True)
        self.encoder.requires_grad_(False)
        self.train(was_training)

    def _load(self, path: str) -> None:
        """Read a file {"E": encoder, "D": decoder} of state dicts, the authors' or ours."""
        try:
            data = load_torch(path)
            for name, prefix, module in self._parts():
                state = {key.removeprefix("module.").removeprefix(prefix): x for key, x in data[name].items()}
                module.load_state_dict(state)
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"{path} does not contain the state dicts E and D of an auto-encoder with codes of length {self.dim}."
            ) from error

    def save_file(self, path: str) -> None:
        """Write the file that `load_file` reads."""
        data = {
            name: {prefix + key: x.cpu() for key, x in module.state_dict().items()}
            for name, prefix, module in self._parts()
        }
        with atomic_write(path) as temporary:
            torch.save(data, temporary)

    def _parts(self):
        """(key in the file, prefix of its parameter names, module)."""
        return ("E", "encoder.", self.encoder), ("D", "decoder.", self.decoder)


class PackedMasks:
    """Masks in a temporary file with 8 pixels per byte, which can be read repeatedly and in any order."""

    def __init__(self, mask_batches: Iterable, size: int):
        """
        Args:
            mask_batches: iterable of arrays or tensors (m, S, S) of 0 and 1, read once.
            size: S.
        """
        self.size = size
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the object)
        for batch in mask_batches:
            self._file.write(np.packbits(np.asarray(batch, bool).reshape(len(batch), -1), axis=1).tobytes())
        self._file.flush()
        row = -(-size * size // 8)
        self._count = self._file.tell() // row
        self._rows = np.memmap(self._file, np.uint8, "r", shape=(self._count, row)) if self._count else None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index) -> torch.Tensor:
        """Read the masks of a slice or of (m,) indices: (m, S, S) float32 of 0 and 1."""
        bits = np.unpackbits(self._rows[index], axis=1, count=self.size**2)
        return torch.from_numpy(bits).float().unflatten(1, (self.size, self.size))
