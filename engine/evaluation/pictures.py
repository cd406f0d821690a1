"""Matplotlib figures of predictions and masks, for TensorBoard and PNG files."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from engine.data.datasets import DatasetDescription
from engine.data.intensity_checks import fill_nan
from engine.data.labels import IGNORED_INDEX
from engine.data.nifti import open_volume, read_voxels, turn_to_ras
from engine.runtime.errors import InputError
from engine.runtime.files import write_whole

PLANES = ("sagittal", "coronal", "axial")  # the plane at a fixed index along each RAS axis


def three_planes(
    image: NDArray[np.floating],
    prediction: NDArray[np.integer],
    label: NDArray[np.integer] | None,
    classes: Sequence[str],
    spacing: Sequence[float],
    title: str,
    window: tuple[float, float] | None = None,
) -> Figure:
    """Draw three planes through the foreground, with solid contours of the prediction and dashed ones of the label.

    Args:
        image: intensities in RAS axis order.
        prediction, label: label maps of class indices on the image's grid; the label may be None.
        classes: class names, background included.
        spacing: voxel size, mm.
        title: title of the figure.
        window: intensities shown as black and white; by default percentiles of the volume.
    Shape: image, prediction, label (X, Y, Z).
    """
    figure = Figure(figsize=(15, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    label = None if label is None else np.where(label == IGNORED_INDEX, 0, label)
    foreground = prediction if label is None or not label.any() else label
    centre = _busiest_planes(foreground)
    low, high = window or np.percentile(image, (1, 99.5))
    colours = colormaps["tab20"](np.arange(len(classes)) % 20)
    axes = figure.subplots(1, 3)
    for axis, plane in enumerate(PLANES):
        across, up = (index for index in range(3) if index != axis)
        view: Axes = axes[axis]
        view.imshow(
            image.take(centre[axis], axis).T,
            cmap="gray",
            aspect=spacing[up] / spacing[across],
            vmin=low,
            vmax=max(high, low + 1e-6),
            origin="lower",
        )
        for volume, style in ((prediction, "solid"), (label, "dashed")):
            if volume is not None:
                _draw_contours(view, np.take(volume, centre[axis], axis).T, colours, style)
        if across == 0:
            view.invert_xaxis()  # the patient's right is on the left, the radiological convention
        view.set_title(f"{plane}, voxel {centre[axis]}")
        view.set_axis_off()
    present = np.unique(prediction if label is None else np.stack([prediction, label]))
    names = [Line2D([], [], color=colours[value], label=classes[value]) for value in present if value]
    lines = [Line2D([], [], color="gray", linestyle="solid", label="prediction")]
    lines += [] if label is None else [Line2D([], [], color="gray", linestyle="dashed", label="label")]
    legend = figure.legend(handles=[*names, *lines], loc="outside lower center", ncols=9, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a class may have dollar signs in its name, which mean no formula
    figure.suptitle(title, parse_math=False)
    return figure


def preview(
    image_path: str,
    prediction: NDArray[np.integer],
    label: NDArray[np.integer] | None,
    description: DatasetDescription,
    case: str,
) -> Figure:
    """Draw ``three_planes`` of a case on its native grid, turned to RAS; of several channels the first is shown.

    Args:
        image_path: NIfTI file of the image.
        prediction, label: label maps on the image's grid.
        description: description of the dataset.
        case: id of the case.
    Raises:
        InputError: the image cannot be read, or has no intensities.
    """
    native = open_volume(image_path)
    intensities = read_voxels(image_path)
    channel = intensities[..., 0] if intensities.ndim == 4 else intensities
    if np.isnan(channel).all():
        raise InputError(f"{image_path}: found NaN in all voxels, expected intensities to draw")
    fill_nan(channel)
    image = turn_to_ras(channel, native.affine)
    prediction = turn_to_ras(prediction, native.affine)
    label = None if label is None else turn_to_ras(label, native.affine)
    to_ras = nib.io_orientation(native.affine)[:, 0].argsort()  # the voxel axis along each RAS axis
    spacing = nib.affines.voxel_sizes(native.affine)[to_ras]
    return three_planes(image, prediction, label, description.classes, spacing, case, description.windows[0])


def mask_slices(masks: dict[str, NDArray[np.floating]]) -> Figure:
    """Draw the central slice of each block's mask M; masks per channel are averaged.

    Args:
        masks: mask of each block by the block's name, (maps, 1, K, K, K).
    """
    columns = 4
    rows = -(-len(masks) // columns)
    figure = Figure(figsize=(3.2 * columns, 3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (name, mask) in enumerate(masks.items(), 1):
        volume = mask.mean(axis=(0, 1))
        view = figure.add_subplot(rows, columns, place)
        shown = view.imshow(volume[volume.shape[0] // 2], cmap="viridis")
        figure.colorbar(shown, ax=view, shrink=0.8)
        view.set_title(name, fontsize=9)
        view.set_axis_off()
    return figure


def encode_png(figure: Figure) -> bytes:
    """Encode a figure as a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    return content.getvalue()


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    write_whole(path, lambda file: file.write(encode_png(figure)))


def _busiest_planes(labels: NDArray[np.integer]) -> list[int]:
    """Find the plane along each axis with the most foreground; the middle one if the map is empty."""
    foreground = labels > 0
    if not foreground.any():
        return [side // 2 for side in labels.shape]
    others = ((1, 2), (0, 2), (0, 1))
    return [int(foreground.sum(axis=axes).argmax()) for axes in others]


def _draw_contours(view: Axes, plane: NDArray[Any], colours: NDArray[np.floating], style: str) -> None:
    for value in np.unique(plane):
        if value and min(plane.shape) > 1:
            view.contour(plane == value, levels=[0.5], colors=[colours[value]], linewidths=1.2, linestyles=style)
