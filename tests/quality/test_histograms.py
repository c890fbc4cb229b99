"""Curves are a site's mean, lie within the axes, and stay few however many sites there are."""

from __future__ import annotations

import re

import numpy as np
import pytest

from mmh_ray.quality.histograms import BOTTOM, HEIGHT, LEFT, MOST, RIGHT, TOP, WIDTH, plots

pytestmark = pytest.mark.fast


def _points(path):
    return np.array([pair.split() for pair in re.split("[ML]", path.rstrip("Z"))[1:]], float)


def test_a_line_is_the_mean_of_the_sites_images_whatever_their_bins(image):
    flat, steep = np.full(50, 1.0), np.full(100, 3.0)
    pair = [image(histogram_before=flat, histogram_after=flat), image(histogram_before=steep, histogram_after=steep)]
    (plot,) = plots([*pair, image(histogram_after=None), image(histogram_before=[np.nan] * 50)])
    (line,) = plot.lines
    other = image(site="beta", histogram_before=flat * 2, histogram_after=flat * 4)
    (both,) = plots([*pair, other])
    assert line.images == 2
    alpha, beta = (_points(line.paths[0])[:, 1] for line in both.lines)
    assert np.allclose(alpha, beta)
    before, after = (_points(path)[:, 1] for path in both.lines[1].paths)
    assert np.allclose(HEIGHT - BOTTOM - after, 2 * (HEIGHT - BOTTOM - before), atol=0.2)


def test_lines_and_marks_lie_within_the_axes(many):
    for plot in plots(many(40)):
        points = np.concatenate([_points(path) for line in plot.lines for path in line.paths])
        assert (points.min(axis=0) >= (LEFT, TOP)).all()
        assert (points.max(axis=0) <= (WIDTH - RIGHT, HEIGHT - BOTTOM)).all()
        assert [tick.label for tick in plot.across] == ["0", "0.25", "0.5", "0.75", "1", "1.25"]
        assert 3 <= len(plot.up) <= 6
        assert all(TOP <= tick.position <= HEIGHT - BOTTOM for tick in plot.up)


def test_small_sites_share_a_band_and_large_ones_keep_their_colour(image):
    images = [image(site=f"site{i:02d}") for i in range(30) for _ in range(1 + i)]
    images += [image(site="site29", sequence="T2w"), image(site=None, sequence="T2w")]
    t1, t2 = plots(images)
    assert [line.site for line in t1.lines] == [f"site{i}" for i in range(30 - MOST, 30)]
    assert sorted(line.colour for line in t1.lines) == list(range(MOST))
    assert t1.others == 30 - MOST
    assert all(path.endswith("Z") for path in t1.band)
    assert t2.lines[0].colour == t1.lines[-1].colour
    assert t2.others == 1


def test_nothing_to_draw_is_no_plot(image):
    assert plots([]) == []
    assert plots([image(histogram_before=None), image(histogram_after=[])]) == []
    (plot,) = plots([image(histogram_before=[0.0] * 9, histogram_after=[0.0] * 9)])
    assert "nan" not in str(plot)
