"""Residual-encoder network of nnU-Net, from the optional package dynamic-network-architectures."""

from collections.abc import Sequence

from torch import Tensor, nn

from .base import InputSizes, Logits, SegmentationNetwork, accepts_empty_batch, check_all_positive, check_positive


class ResEncUNet(SegmentationNetwork):
    """Residual-encoder U-Net (Isensee et al., "nnU-Net Revisited", MICCAI 2024); six stages, 102.4 M parameters.

    Args:
        in_chans: input channels.
        out_chans: classes, background included.
        feat_size: channels of the stages, one number per stage.
        n_blocks: residual blocks of the encoder's stages, one number per stage.
    Shape: (N, in_chans, D, H, W) -> (N, out_chans, D, H, W); sides divisible by 2 ** (stages - 1), not all equal to it.
    Raises:
        ValueError: the package is not installed, or an invalid argument.
    """

    # The decoder registers the encoder too, so the state_dict has it under both names.
    stem_prefixes = ("encoder.stem.convs.0.", "decoder.encoder.stem.convs.0.")
    head_prefixes = ("decoder.seg_layers.",)

    def __init__(
        self,
        in_chans: int = 1,
        out_chans: int = 16,
        feat_size: Sequence[int] = (32, 64, 128, 256, 320, 320),
        n_blocks: Sequence[int] = (1, 3, 4, 6, 6, 6),
    ) -> None:
        try:
            from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
        except ImportError as error:
            raise ValueError(
                f"found no package dynamic-network-architectures ({error}), expected it installed: "
                "pip install --no-deps dynamic-network-architectures, in the version of requirements-optional.txt"
            ) from error
        stages = len(n_blocks)
        check_positive(in_chans=in_chans, out_chans=out_chans, n_blocks=stages)
        check_all_positive(stages, feat_size=feat_size, n_blocks=n_blocks)
        super().__init__()
        unet = ResidualEncoderUNet(
            input_channels=in_chans,
            n_stages=stages,
            features_per_stage=tuple(feat_size),
            conv_op=nn.Conv3d,
            kernel_sizes=3,
            strides=(1, *[2] * (stages - 1)),
            n_blocks_per_stage=tuple(n_blocks),
            num_classes=out_chans,
            n_conv_per_stage_decoder=(1,) * (stages - 1),
            conv_bias=True,
            norm_op=nn.InstanceNorm3d,
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
        )
        unet.apply(unet.initialize)
        self.encoder, self.decoder = unet.encoder, unet.decoder
        self.in_chans, self.out_chans = in_chans, out_chans
        self.input_sizes = InputSizes(2 ** (stages - 1))
        self.encoder_prefixes = (("encoder.stem.",), *((f"encoder.stages.{stage}.",) for stage in range(stages)))
        # The heads of the coarser stages are for deep supervision.
        self.unused_prefixes = tuple(f"decoder.seg_layers.{stage}." for stage in range(stages - 2))
        self.freeze_unused()

    @accepts_empty_batch
    def forward(self, x: Tensor) -> Logits:
        logits = self.decoder(self.encoder(x))
        if not self.deep_supervision:
            return logits
        return tuple(logits[:-1]) if self.training else logits[0]

    def enable_deep_supervision(self) -> None:
        """Train the heads of the decoder's stages but the coarsest, to which nnU-Net gives the weight 0.

        Raises:
            ValueError: there are no such stages.
        """
        if len(self.decoder.seg_layers) < 3:
            stages = len(self.decoder.seg_layers) + 1
            raise ValueError(f"n_blocks: found {stages} stages, expected at least 4 for deep supervision")
        self.deep_supervision = self.decoder.deep_supervision = True
        self.unused_prefixes = ("decoder.seg_layers.0.",)
        self.decoder.seg_layers[1:].requires_grad_(True)
