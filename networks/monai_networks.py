"""Baselines from MONAI with the arguments of the papers that compare them, behind this project's interface.

State_dict keys are MONAI's.
"""

from collections.abc import Sequence

import torch
from monai.networks.blocks.hyena import is_nvsubquadratic_available
from monai.networks.blocks.mednext_block import MedNeXtDownBlock, MedNeXtOutBlock
from monai.networks.nets import dynunet, mednext, swin_unetr, unet, unetr
from torch import Tensor, nn

from .base import InputSizes, Logits, SegmentationNetwork, accepts_empty_batch, check_all_positive, check_positive
from .large_kernel_unet import ENCODER1_STEM


class SwinUNETR(SegmentationNetwork, swin_unetr.SwinUNETR):
    """Swin transformer encoder, convolutional decoder (Hatamizadeh et al., BrainLes 2021); 62.19 M parameters.

    With ``hyena_stages`` it is MONAI's HyenaNDUNETR (NVIDIA, 2026): instead of attending within windows, these stages
    convolve by FFT with input-dependent kernels as large as the grid; 62.19 M parameters as well.

    Args:
        in_chans: input channels.
        out_chans: classes, background included.
        feature_size: channels of the first stage, divisible by 12.
        depths: blocks per stage.
        num_heads: attention heads per stage, divisors of its channels.
        window_size: side of the attention windows, in patches of 2^3 voxels at the first stage.
        dropout_path_rate: rate of stochastic depth.
        use_checkpoint: recompute activations in the backward pass.
        use_v2: add a residual convolution before each stage (72.76 M; not the network of the papers).
        hyena_stages: whether each of the four stages is a HyenaND stage; None for none.
    Shape: (N, in_chans, D, H, W) -> (N, out_chans, D, H, W); sides divisible by 32, not all equal to 32.
    Raises:
        ValueError: an invalid argument.
        ImportError: HyenaND stages without the optional package nvsubquadratic.
    """

    stem_prefixes = ("swinViT.patch_embed.proj.weight", *ENCODER1_STEM)
    head_prefixes = ("out.",)
    # "layers1" is also the beginning of "layers1c", the convolutions of use_v2.
    encoder_prefixes = (("swinViT.patch_embed.",), *((f"swinViT.layers{stage}",) for stage in range(1, 5)))

    def __init__(
        self,
        in_chans: int = 1,
        out_chans: int = 16,
        feature_size: int = 48,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        dropout_path_rate: float = 0.0,
        use_checkpoint: bool = False,
        use_v2: bool = False,
        hyena_stages: Sequence[bool] | None = None,
    ) -> None:
        check_positive(in_chans=in_chans, out_chans=out_chans, feature_size=feature_size, window_size=window_size)
        check_all_positive(4, depths=depths, num_heads=num_heads)
        if feature_size % 12:
            raise ValueError(f"feature_size: found {feature_size}, expected a multiple of 12")
        dims = tuple(feature_size * 2**stage for stage in range(4))
        if any(dim % heads for dim, heads in zip(dims, num_heads, strict=True)):
            raise ValueError(f"num_heads: found {tuple(num_heads)}, expected divisors of the channels {dims}")
        if hyena_stages is not None and len(hyena_stages) != 4:
            raise ValueError(f"hyena_stages: found {tuple(hyena_stages)}, expected 4 of true or false")
        if hyena_stages is not None and not is_nvsubquadratic_available():
            raise ImportError(
                "found no package nvsubquadratic, expected it installed: "
                "pip install --no-deps -r requirements-optional.txt"
            )
        device = torch.get_default_device()
        with torch.device("cpu"):  # MONAI reads tensor values here, which the meta device does not have
            super().__init__(
                in_chans,
                out_chans,
                feature_size=feature_size,
                depths=depths,
                num_heads=num_heads,
                window_size=window_size,
                dropout_path_rate=dropout_path_rate,
                use_checkpoint=use_checkpoint,
                use_v2=use_v2,
                use_hyena=hyena_stages is not None,
                hyena_stages=None if hyena_stages is None else tuple(hyena_stages),
            )
        if hyena_stages is not None:
            from .hyena_masks import make_masks_exportable

            make_masks_exportable(self)
        self.to(device)
        self.in_chans, self.out_chans = in_chans, out_chans
        self.input_sizes = InputSizes(32)  # patches of 2^3, four mergings

    @accepts_empty_batch
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)  # MONAI calls it x_in

    def _check_input_size(self, spatial_shape: Sequence[int]) -> None:
        """Do nothing: calls check the input already, and ``torch.export(strict=True)`` fails on MONAI's NumPy code."""

    def enable_checkpointing(self) -> None:
        for module in self.swinViT.modules():
            if isinstance(module, swin_unetr.SwinTransformerBlock):
                module.use_checkpoint = True


class UNETR(SegmentationNetwork, unetr.UNETR):
    """Vision transformer encoder, convolutional decoder (Hatamizadeh et al., WACV 2022); 92.80 M parameters.

    Args:
        in_chans: input channels.
        out_chans: classes, background included.
        roi_size: (D, H, W) of the inputs, the only accepted size, voxels.
        feature_size: channels at full resolution.
        hidden_size: width of the tokens.
        mlp_dim: width of the transformer's hidden layers.
        num_heads: attention heads.
        proj_type: patch embedding, "perceptron" as in the paper or "conv".
        dropout_rate: dropout rate in the transformer.
    Shape: (N, in_chans, D, H, W) -> (N, out_chans, D, H, W), of ``roi_size``; its sides are divisible by 16.
    Raises:
        ValueError: an invalid argument, or a ``roi_size`` with sides not divisible by 16.
    """

    stem_prefixes = (
        "vit.patch_embedding.patch_embeddings.1.weight",
        "vit.patch_embedding.patch_embeddings.weight",
        *ENCODER1_STEM,
    )
    head_prefixes = ("out.",)
    # A stage ends where the decoder takes its tokens. All have the same grid.
    encoder_prefixes = (
        ("vit.patch_embedding.",),
        *(tuple(f"vit.blocks.{block}." for block in range(first, first + 3)) for first in (0, 3, 6)),
        (*(f"vit.blocks.{block}." for block in range(9, 12)), "vit.norm."),
    )
    # MONAI creates them in every block for a cross attention that UNETR does not have; older checkpoints lack them.
    unused_prefixes = tuple(f"vit.blocks.{block}.norm_cross_attn." for block in range(12))

    def __init__(
        self,
        in_chans: int = 1,
        out_chans: int = 16,
        roi_size: Sequence[int] = (96, 96, 96),
        feature_size: int = 16,
        hidden_size: int = 768,
        mlp_dim: int = 3072,
        num_heads: int = 12,
        proj_type: str = "perceptron",
        dropout_rate: float = 0.0,
    ) -> None:
        check_positive(in_chans=in_chans, out_chans=out_chans, feature_size=feature_size)
        check_positive(hidden_size=hidden_size, mlp_dim=mlp_dim, num_heads=num_heads)
        sizes = InputSizes(16, least_coarse=1, built_for=tuple(roi_size))
        super().__init__(
            in_chans,
            out_chans,
            img_size=tuple(roi_size),
            feature_size=feature_size,
            hidden_size=hidden_size,
            mlp_dim=mlp_dim,
            num_heads=num_heads,
            proj_type=proj_type,
            dropout_rate=dropout_rate,
        )
        self.in_chans, self.out_chans = in_chans, out_chans
        self.input_sizes = sizes
        self.freeze_unused()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)  # MONAI calls it x_in


class UNet3D(SegmentationNetwork, unet.UNet):
    """Residual 3D U-Net of five levels (Çiçek et al., MICCAI 2016; Kerfoot et al., 2018); 4.81 M parameters.

    Args:
        in_chans: input channels.
        out_chans: classes, background included.
        channels: channels of the five levels.
        num_res_units: residual units per level.
        dropout: dropout rate after every convolution.
    Shape: (N, in_chans, D, H, W) -> (N, out_chans, D, H, W); sides divisible by 16, not all equal to 16.
    Raises:
        ValueError: an invalid argument.
    """

    stem_prefixes = ("model.0.conv.unit0.conv.weight", "model.0.residual.weight")
    head_prefixes = ("model.2.",)
    # Each level is "0" of a Sequential, and all that is below it "1.submodule".
    encoder_prefixes = (
        *((f"model.{'1.submodule.' * level}0.",) for level in range(4)),
        (f"model.{'1.submodule.' * 4}",),
    )

    def __init__(
        self,
        in_chans: int = 1,
        out_chans: int = 16,
        channels: Sequence[int] = (16, 32, 64, 128, 256),
        num_res_units: int = 2,
        dropout: float = 0.0,
    ) -> None:
        check_positive(in_chans=in_chans, out_chans=out_chans, num_res_units=num_res_units)
        check_all_positive(5, channels=channels)
        strides = (2, 2, 2, 2)
        super().__init__(3, in_chans, out_chans, channels, strides, num_res_units=num_res_units, dropout=dropout)
        self.in_chans, self.out_chans = in_chans, out_chans
        self.input_sizes = InputSizes(16)


class nnUNet(SegmentationNetwork, dynunet.DynUNet):
    """The plain network of nnU-Net's plans (Isensee et al., 2021); 31.19 M parameters with its six levels.

    Args:
        in_chans: input channels.
        out_chans: classes, background included.
        filters: channels of each level, four or more; nnU-Net plans fewer levels for smaller crops.
    Shape: (N, in_chans, D, H, W) -> (N, out_chans, D, H, W); sides divisible by 2^(levels - 1), 32 by default, not all
        equal to it.
    Raises:
        ValueError: an invalid argument.
    """

    # DynUNet registers its blocks a second time, under the skip layers that join them.
    stem_prefixes = ("input_block.conv1.conv.weight", "skip_layers.downsample.conv1.conv.weight")
    head_prefixes: tuple[str, ...] = ("output_block.",)
    ignored_prefixes: tuple[str, ...] = ("deep_supervision_heads.",)

    def __init__(
        self, in_chans: int = 1, out_chans: int = 16, filters: Sequence[int] = (32, 64, 128, 256, 320, 320)
    ) -> None:
        check_positive(in_chans=in_chans, out_chans=out_chans)
        levels = len(filters)
        if levels < 4 or min(filters) < 1:  # with fewer, deep supervision would have a single grid
            raise ValueError(f"filters: found {tuple(filters)}, expected four or more positive numbers")
        strides, kernels = (1, *(2,) * (levels - 1)), (3,) * levels
        super().__init__(3, in_chans, out_chans, kernels, strides, upsample_kernel_size=strides[1:], filters=filters)
        self.in_chans, self.out_chans = in_chans, out_chans
        self.input_sizes = InputSizes(2 ** (levels - 1))
        between = ((f"downsamples.{level}.",) for level in range(levels - 2))
        self.encoder_prefixes = (("input_block.",), *between, ("bottleneck.",))

    @accepts_empty_batch
    def forward(self, x: Tensor) -> Logits:
        return self._forward_deep(x) if self.deep_supervision and self.training else super().forward(x)

    def _forward_deep(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of each grid; MONAI interpolates all of them to full resolution."""
        x = self.input_block(x)
        skips = [x]
        for block in self.downsamples:
            x = block(x)
            skips.append(x)
        x = self.bottleneck(x)
        maps = []
        for block in self.upsamples:
            x = block(x, skips.pop())
            maps.append(x)
        heads = (self.output_block, *self.deep_supervision_heads)
        return tuple(head(grid) for head, grid in zip(heads, reversed(maps[1:]), strict=True))

    def enable_deep_supervision(self) -> None:
        """Create heads for the decoder's stages but the coarsest, to which nnU-Net gives the weight 0."""
        heads = nn.ModuleList(self.get_output_block(stage) for stage in range(1, len(self.filters) - 2))
        self.deep_supervision_heads = heads.apply(self.initialize_weights)
        self.deep_supervision = True
        self.head_prefixes, self.ignored_prefixes = ("output_block.", "deep_supervision_heads."), ()


MEDNEXT_RATIOS = {"S": (2, 2, 2, 2, 2), "B": (2, 3, 4, 4, 4), "M": (2, 3, 4, 4, 4), "L": (3, 4, 8, 8, 8)}
MEDNEXT_BLOCKS = {"S": (2, 2, 2, 2, 2), "B": (2, 2, 2, 2, 2), "M": (3, 4, 4, 4, 4), "L": (3, 4, 8, 8, 8)}


class MedNeXt(SegmentationNetwork, mednext.MedNeXt):
    """ConvNeXt-like U-Net (Roy et al., MICCAI 2023) in its published sizes; L with kernel 5 has 62.99 M parameters.

    MONAI builds the down-sampling block after stage i with the expansion ratio of that stage. The published network
    uses the ratio of the next stage, and so does this one.

    Args:
        in_chans: input channels.
        out_chans: classes, background included.
        size: "S", "B", "M" or "L".
        kernel_size: side of the depthwise kernels, 3 or 5 voxels.
        channels: channels at full resolution.
    Shape: (N, in_chans, D, H, W) -> (N, out_chans, D, H, W); sides divisible by 16, not all equal to 16.
    Raises:
        ValueError: an invalid argument.
    """

    stem_prefixes = ("stem.weight",)
    head_prefixes: tuple[str, ...] = ("out_0.",)
    encoder_prefixes = (
        ("stem.",),
        ("enc_stages.0.",),
        *((f"down_blocks.{stage - 1}.", f"enc_stages.{stage}.") for stage in range(1, 4)),
        ("down_blocks.3.", "bottleneck."),
    )
    ignored_prefixes: tuple[str, ...] = ("out_blocks.",)

    def __init__(
        self,
        in_chans: int = 1,
        out_chans: int = 16,
        size: str = "S",
        kernel_size: int = 3,
        channels: int = 32,
    ) -> None:
        if size not in MEDNEXT_RATIOS:
            raise ValueError(f"size: found {size!r}, expected one of {', '.join(MEDNEXT_RATIOS)}")
        if kernel_size not in (3, 5):
            raise ValueError(f"kernel_size: found {kernel_size}, expected 3 or 5")
        check_positive(in_chans=in_chans, out_chans=out_chans, channels=channels)
        ratios, blocks = MEDNEXT_RATIOS[size], MEDNEXT_BLOCKS[size]
        super().__init__(
            init_filters=channels,
            in_channels=in_chans,
            out_channels=out_chans,
            encoder_expansion_ratio=ratios[:4],
            decoder_expansion_ratio=ratios[3::-1],
            bottleneck_expansion_ratio=ratios[4],
            kernel_size=kernel_size,
            use_residual_connection=True,
            blocks_down=blocks[:4],
            blocks_bottleneck=blocks[4],
            blocks_up=blocks[3::-1],
        )
        self.down_blocks = nn.ModuleList(
            MedNeXtDownBlock(
                channels * 2**stage,
                channels * 2 ** (stage + 1),
                ratios[stage + 1],
                kernel_size,
                use_residual_connection=True,
            )
            for stage in range(4)
        )
        self.in_chans, self.out_chans = in_chans, out_chans
        self.input_sizes = InputSizes(16)

    def forward(self, x: Tensor) -> Logits:
        logits = super().forward(x)
        return logits if isinstance(logits, Tensor) else tuple(logits[:-1])

    def enable_deep_supervision(self) -> None:
        """Create the official heads; that of the bottleneck, to which nnU-Net gives the weight 0, stays unused."""
        channels = self.stem.out_channels
        self.out_blocks = nn.ModuleList(
            MedNeXtOutBlock(channels * 2**stage, self.out_chans, dim="3d") for stage in (4, 3, 2, 1)
        )
        self.deep_supervision = self.do_ds = True
        self.head_prefixes, self.ignored_prefixes = ("out_0.", "out_blocks."), ()
        self.unused_prefixes = ("out_blocks.0.",)
        self.freeze_unused()
