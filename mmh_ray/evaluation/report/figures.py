"""Draws the pictures of the report: images before and after, their differences, histograms and feature maps.

Slices are 2-D arrays from :func:`~mmh_ray.imaging.slices.middle_slice`, scaled to 0-1 by
:func:`~mmh_ray.evaluation.metrics.agreement.scale_by_percentiles`. Drawing needs no display.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from mmh_ray.imaging.grid import box_of
from mmh_ray.provenance import whole_file

DIVERGING = LinearSegmentedColormap.from_list("ice_fire", ["#a6e3ff", "#2b7bd6", "#000000", "#d1491b", "#ffd98a"])
"""Diverging colours with black in the middle, for differences on a black background."""

LIMIT = 0.5
"""Difference shown in full colour, as a share of the brain's intensity range."""

_BINS = 80
"""Bins of a histogram."""
_SITE_COLOURS = ("#4cc9f0", "#f9a03f", "#80ed99", "#f15bb5", "#fee440", "#9b8cff", "#ff6b6b", "#c7c7c7")
_INK = "#f2f2f2"
_FAINT = "#9a9a9a"


def before_after(path: str | Path, rows: Mapping[str, Sequence[np.ndarray]], sites: Sequence[str], title: str) -> None:
    """One row per method (label → one slice per site) and one column per site, all displayed from 0 to 1."""
    rows = _cropped(rows)
    figure, axes = _canvas(rows, sites, title)
    _show(axes, rows, cmap="gray", vmin=0, vmax=1)
    _save(figure, path)


def differences(
    path: str | Path, source: Sequence[np.ndarray], harmonized: Sequence[np.ndarray], sites: Sequence[str], title: str
) -> None:
    """Changes by harmonization, and differences of each site to the first site, before and after.

    Colours range from ``-LIMIT`` to ``LIMIT`` of the brain's intensity range; 0 is black.
    """
    cropped = _cropped({"source": source, "harmonized": harmonized})
    source = cropped["source"]
    harmonized = cropped["harmonized"]
    rows = {
        "harmonized\n- source": [after - before for before, after in zip(source, harmonized, strict=True)],
        f"before:\nsite - {sites[0]}": [image - source[0] for image in source],
        f"after:\nsite - {sites[0]}": [image - harmonized[0] for image in harmonized],
    }
    figure, axes = _canvas(rows, sites, title, bar_inches=1)
    shown = _show(axes, rows, cmap=DIVERGING, vmin=-LIMIT, vmax=LIMIT)
    bar = figure.colorbar(shown, ax=list(axes.flat), fraction=0.03, pad=0.02, extend="both")
    bar.set_label("difference (1 = brain's 1st to 99th percentile)", color=_INK)
    bar.ax.tick_params(colors=_INK)
    bar.outline.set_edgecolor(_FAINT)
    _save(figure, path)


def histograms(path: str | Path, before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], title: str) -> None:
    """Density of brain intensities per site (site → intensities), before and after, on shared axes."""
    figure = _figure((10, 4), title)
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    edges = np.linspace(-0.1, 1.2, _BINS + 1)
    middles = (edges[:-1] + edges[1:]) / 2
    bin_width = edges[1] - edges[0]
    colours = _colours({*before, *after})
    panels = {"before (raw)": before, "after (harmonized)": after}
    for ax, (name, values) in zip(axes, panels.items(), strict=True):
        for site, intensities in sorted(values.items()):
            counts, _ = np.histogram(intensities, edges)
            density = _smooth(counts / (max(intensities.size, 1) * bin_width))
            ax.plot(middles, density, color=colours[site], linewidth=1.8, alpha=0.9)
        _dark_axes(ax, name)
    axes[0].set_ylabel("density", color=_INK)
    _site_legend(figure, colours)
    _save(figure, path)


def feature_map(path: str | Path, panels: Mapping[str, tuple[np.ndarray, Sequence[str]]], title: str) -> None:
    """Maps of images by their features, one panel per method: label → ``(n, 2)`` points and the group of each.

    A group is a site or a person. A map shows which images are near each other; its distances have no unit, and the
    panels do not share axes.
    """
    colours = _colours({group for _, groups in panels.values() for group in groups})
    figure = _figure((3.4 * len(panels), 4), title)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, label in zip(axes, panels, strict=True):
        points, groups = panels[label]
        across, up = points.T
        point_colours = [colours[group] for group in groups]
        ax.scatter(across, up, c=point_colours, s=22, alpha=0.85, linewidths=0)
        _blank(ax)
        ax.set_title(label, color=_INK, fontsize=11)
        ax.spines[:].set_color("#333333")
    _site_legend(figure, colours)
    _save(figure, path)


def _colours(groups: Iterable[str]) -> dict[str, str]:
    """A colour for each group, in the order of their names; colours repeat after eight groups."""
    endless_colours = itertools.cycle(_SITE_COLOURS)
    return dict(zip(sorted(groups), endless_colours, strict=False))


def _site_legend(figure: Figure, colours: Mapping[str, str]) -> None:
    lines = [Line2D([], [], color=colour, linewidth=3, label=site) for site, colour in colours.items()]
    columns = min(len(lines), 8)
    figure.legend(handles=lines, loc="outside lower center", ncols=columns, frameon=False, labelcolor=_INK)


def _figure(size_inches: tuple[float, float], title: str, layout: Any = "constrained") -> Figure:
    """A black figure with a title."""
    figure = Figure(figsize=size_inches, facecolor="black", layout=layout)
    figure.suptitle(title, color=_INK, fontsize=13)
    return figure


def _blank(ax: Axes) -> None:
    """Make the axes black, without ticks."""
    ax.set_facecolor("black")
    ax.set(xticks=[], yticks=[])


def _canvas(
    rows: Mapping[str, Sequence[np.ndarray]], sites: Sequence[str], title: str, bar_inches: float = 0
) -> tuple[Figure, np.ndarray]:
    """A figure with empty axes, one row per method and one column per site, with room for a colour bar."""
    shapes = [image.shape for slices in rows.values() for image in slices]
    tallest, widest = np.max(shapes, axis=0).tolist()
    slice_inches = 2.1
    width = slice_inches * len(sites) + 1.1 + bar_inches
    height = slice_inches * (tallest / widest) * len(rows) + 0.9
    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06, wspace=0, hspace=0)
    figure = _figure((width, height), title, layout)
    axes = figure.subplots(len(rows), len(sites), squeeze=False)
    for ax in axes.flat:
        _blank(ax)
        ax.spines[:].set_visible(False)
    for ax, site in zip(axes[0], sites, strict=True):
        ax.set_title(site, color=_FAINT, fontsize=11)
    return figure, axes


def _show(axes: np.ndarray, rows: Mapping[str, Sequence[np.ndarray]], **colours: Any) -> AxesImage:
    """Draw every row's slices and its label; return the last image, which a colour bar needs."""
    for axes_row, (label, slices) in zip(axes, rows.items(), strict=True):
        for ax, image in zip(axes_row, slices, strict=True):
            shown = ax.imshow(image, interpolation="nearest", **colours)
        axes_row[0].set_ylabel(label, color=_INK, fontsize=11)
    return shown


def _cropped(rows: Mapping[str, Sequence[np.ndarray]]) -> dict[str, list[np.ndarray]]:
    """Remove the empty border that all slices of a site (column) share, so that they stay aligned."""
    columns = zip(*rows.values(), strict=True)
    boxes = [_filled_box(column) for column in columns]
    cropped = {}
    for label, slices in rows.items():
        cropped[label] = [image[box] for image, box in zip(slices, boxes, strict=True)]
    return cropped


def _filled_box(images: Sequence[np.ndarray]) -> tuple[slice, ...]:
    """Rows and columns in which any image is not 0, with a margin of two; the whole image if all are empty."""
    is_filled = np.any([image != 0 for image in images], axis=0)
    if not is_filled.any():
        is_filled = np.ones_like(is_filled)
    return box_of(is_filled, margin=2)


def _dark_axes(ax: Axes, title: str) -> None:
    ax.set_facecolor("black")
    ax.set_title(title, color=_INK, fontsize=11)
    ax.set_xlabel("intensity (brain's 1st to 99th percentile = 0 to 1)", color=_INK)
    ax.tick_params(colors=_FAINT)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(_FAINT)
    ax.grid(color="#333333", linewidth=0.5)


def _smooth(density: np.ndarray) -> np.ndarray:
    return np.convolve(np.pad(density, 1, mode="edge"), (0.25, 0.5, 0.25), mode="valid")


def _save(figure: Figure, path: str | Path) -> None:
    FigureCanvasAgg(figure)
    with whole_file(path) as partial:
        figure.savefig(partial, format="png", dpi=110, facecolor="black")
