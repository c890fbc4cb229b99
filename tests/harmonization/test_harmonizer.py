"""One scan through stage 1 and back to its own grid, with a model that gives a known image."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from mmh_ray.config import Config, GridConfig, HarmonizeConfig, ModelConfig, PrepareConfig
from mmh_ray.errors import ConfigError, DataError, ModelError, RefusedError
from mmh_ray.harmonization.harmonizer import Harmonizer, with_smaller_batches
from mmh_ray.imaging.detail import continued, fit_curve
from mmh_ray.imaging.grid import from_grid, to_grid
from mmh_ray.imaging.intensity import noise_level
from mmh_ray.imaging.preprocess import Prepared
from mmh_ray.imaging.template import OUTPUT_AFFINE, OUTPUT_SHAPE, SPACE, template
from mmh_ray.imaging.volume import Volume
from mmh_ray.models.bundle import Bundle
from mmh_ray.models.global_harmonizer import GlobalHarmonizer
from mmh_ray.quality.checks import check_scan
from mmh_ray.quality.measures import measures
from mmh_ray.simulation.anatomy import Person, simulate_anatomy
from mmh_ray.simulation.phantom import SITES, canonical, render
from tests.phantoms import contrast_and_volume, hydrocephalus, tumour

pytestmark = pytest.mark.slow

CONFIG = Config(
    model=ModelConfig(channels=(8, 16), slab=3, distances=(1, 2), patch=2),
    grid=GridConfig(6.0, (32, 40, 32)),
    prepare=PrepareConfig(n4=False),
)
UNIT = 700.0
"""Scan units of white matter."""


def turn(degrees: float) -> np.ndarray:
    """Turn about the z axis, then about the x axis."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


@pytest.fixture(scope="module")
def scan() -> tuple[Volume, np.ndarray]:
    """A brain in air on an oblique, anisotropic, left-handed grid, and its mask."""
    anatomy = simulate_anatomy(Person(1), 3.0)
    shape, affine = (52, 42, 30), np.eye(4)
    affine[:3, :3] = turn(17) * [-4.0, 5.0, 6.5]
    middle = anatomy.affine @ np.append(np.argwhere(anatomy.brain).mean(0), 1)
    affine[:3, 3] = middle[:3] - affine[:3, :3] @ (np.array(shape) - 1) / 2
    data = to_grid(canonical(anatomy, "T1w", 3.0), anatomy.affine, affine, shape)
    mask = to_grid(anatomy.brain.astype(np.float32), anatomy.affine, affine, shape) > 0.5
    return Volume((UNIT * data).astype(np.float32), affine), mask


def as_sequence(scan: tuple[Volume, np.ndarray], sequence: str) -> Volume:
    """The scan, or one in which dark tissue is bright."""
    volume, mask = scan
    return volume if sequence == "T1w" else volume.like(np.where(mask, 1.2 * UNIT - volume.data, 0).astype(np.float32))


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """An untrained model."""
    torch.manual_seed(0)
    quantiles = torch.linspace(0, 1, 257).repeat(2, 2, 1)
    loading: Future[GlobalHarmonizer] = Future()
    loading.set_result(GlobalHarmonizer(CONFIG.model, CONFIG.train, quantiles).eval())
    return Bundle(loading, CONFIG, quantiles, "0" * 64, {})


def knowing(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, slope: float = 1, offset: float = 0, **settings):
    """A harmonizer whose model gives an affine style of the prepared image."""

    def sample(_self: Harmonizer, prepared: Prepared, _label: int) -> np.ndarray:
        return (slope * prepared.image + offset * prepared.mask).astype(np.float32)[None]  # one plane

    monkeypatch.setattr(Harmonizer, "sample_planes", sample)
    return Harmonizer(bundle, HarmonizeConfig(**settings))


@pytest.mark.parametrize("noise", [0.0, 0.04])
def test_a_model_that_changes_nothing_gives_the_scan_back_to_rounding(
    bundle: Bundle,
    scan: tuple[Volume, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    noise: float,
    rng: np.random.Generator,
) -> None:
    """On its oblique, anisotropic grid, with any noise, without N4: nothing is interpolated or removed."""
    volume, mask = scan
    volume = volume.like(np.abs(volume.data + rng.normal(0, noise * UNIT, mask.shape)).astype(np.float32))
    found = knowing(bundle, monkeypatch).run(volume, "T1w", mask)
    unit = found.prepared.scaling.apply(volume.data)
    assert np.abs(found.volume.data - unit).max() < 1e-4
    assert found.volume.data.shape == volume.data.shape
    np.testing.assert_array_equal(found.volume.affine, volume.affine)
    assert np.percentile(unit[mask], 99.5) == pytest.approx(1, abs=0.05)


def test_with_n4_a_model_that_changes_nothing_gives_the_scan_divided_by_its_field(
    bundle: Bundle, scan: tuple[Volume, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not exact to rounding: the field is known on the working grid, and is fitted in windows."""
    volume, mask = scan
    field = np.exp(0.3 * np.linspace(-1, 1, mask.shape[1]))[:, None]
    volume = volume.like((volume.data * field).astype(np.float32))
    corrected = replace(bundle, config=replace(CONFIG, prepare=PrepareConfig(n4=True, register=False)))
    knowing(corrected, monkeypatch)
    found = Harmonizer(corrected).run(volume, "T1w", mask)
    prepared = found.prepared
    gain = continued(prepared.gain, prepared.mask)
    assert gain.max() / gain.min() > 1.3  # there was something to correct
    ideal = prepared.scaling.apply(volume.data) * from_grid(gain, prepared.affine, volume.affine, mask.shape)
    error = np.abs(found.volume.data - ideal)[mask]
    assert error.mean() < 0.003
    assert error.max() < 0.03


@pytest.mark.parametrize(("slope", "offset"), [(0.6, 0.3), (1.4, -0.2)])
def test_an_affine_style_reaches_every_native_voxel_inside(
    bundle: Bundle, scan: tuple[Volume, np.ndarray], monkeypatch: pytest.MonkeyPatch, slope: float, offset: float
) -> None:
    volume, mask = scan
    found = knowing(bundle, monkeypatch, slope, offset).run(volume, "T1w", mask)
    unit = found.prepared.scaling.apply(volume.data)
    inside = ndimage.binary_erosion(mask, iterations=2) & (
        unit > np.quantile(unit[mask], 0.1)
    )  # below, the curve leads to 0
    error = np.abs(found.volume.data - np.clip(slope * unit + offset, 0, None))[inside]
    removed = abs(slope) * noise_level(unit, mask)  # what looks like noise may be removed
    assert np.quantile(error, 0.999) < 0.05
    assert error.max() < 0.05 + removed


@pytest.mark.parametrize("detail", ["project", "model"])
@pytest.mark.parametrize("sequence", ["T1w", "T2w"])
def test_result_of_an_untrained_model_is_finite_and_not_negative(
    bundle: Bundle, scan: tuple[Volume, np.ndarray], detail: str, sequence: str
) -> None:
    volume, mask = as_sequence(scan, sequence), scan[1]
    before = volume.data.copy()
    found = Harmonizer(bundle, HarmonizeConfig(detail=detail, planes=("axial",))).run(volume, sequence, mask)
    for image in (found.volume.data, found.model_image):
        assert image.dtype == np.float32
        assert np.isfinite(image).all()
        assert image.min() >= 0
    assert found.model_image.shape == CONFIG.grid.shape
    assert found.volume.data.shape == volume.data.shape
    np.testing.assert_array_equal(volume.data, before)


def test_air_stays_dark_under_a_style_that_lifts_the_brain(
    bundle: Bundle, scan: tuple[Volume, np.ndarray], monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    volume, mask = scan
    noisy = np.hypot(volume.data + rng.normal(0, 0.02 * UNIT, mask.shape), rng.normal(0, 0.02 * UNIT, mask.shape))
    found = knowing(bundle, monkeypatch, 0.5, 0.4).run(volume.like(noisy.astype(np.float32)), "T1w", mask)
    outside = ~ndimage.binary_dilation(mask, iterations=4)
    assert found.volume.data[mask].mean() > 0.6
    assert found.volume.data[outside].mean() < 0.1
    silent = knowing(bundle, monkeypatch, 0.5, 0.4).run(volume, "T1w", mask).volume.data
    assert not silent[outside & (volume.data == 0)].any()


def test_nothing_lights_up_around_a_stripped_brain(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The voxels of the working grid are coarser than the scan's and reach beyond its brain."""
    anatomy = simulate_anatomy(Person(1), 2.0)
    data = np.where(anatomy.brain, UNIT * canonical(anatomy, "T1w", 2.0), 0).astype(np.float32)
    found = knowing(bundle, monkeypatch, 0.5, 0.4).run(Volume(data, anatomy.affine), "T1w", anatomy.brain)
    assert found.volume.data[anatomy.brain].mean() > 0.6
    assert not found.volume.data[~anatomy.brain].any()


def test_projection_keeps_detail_that_the_models_own_image_lacks(
    bundle: Bundle, scan: tuple[Volume, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, mask = scan
    data, inside = volume.data.copy(), np.argwhere(ndimage.binary_erosion(mask, iterations=3))
    spot = tuple(inside[len(inside) // 2])
    data[spot] = 1.9 * UNIT  # one bright voxel, smaller than a working voxel
    results = {
        detail: knowing(bundle, monkeypatch, detail=detail).run(volume.like(data), "T1w", mask)
        for detail in ("project", "model")
    }
    assert results["project"].volume.data[spot] > results["model"].volume.data[spot] + 0.2
    np.testing.assert_array_equal(results["project"].model_image, results["model"].model_image)
    assert not np.allclose(results["project"].volume.data, results["model"].volume.data, atol=0.01)


@pytest.mark.parametrize("model", ["style", "invents", "erases"])
@pytest.mark.parametrize(("kind", "kept"), [("tumour", 0.82), ("cavity", 0.92), ("ventricles", 0.8)])
def test_a_structure_survives_the_projection_and_none_appears(
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    rng: np.random.Generator,
    kind: str,
    kept: float,
    model: str,
) -> None:
    """A tumour, a cavity of 13 ml, or ventricles enlarged to three times their size, in a noisy T2w.

    Contrast and volume of the structure are compared with those of the scan under the model's style. A model that
    treats the structure like the rest of the brain keeps both. So does one that invents a tumour elsewhere, and of this
    tumour, 0.25 to 0.3 bright, less than 0.06 is left. A model that erases the structure shifts the medians that the
    curve is fitted to, if the structure holds much of the brain's fluid. Volumes then still stay within a tenth, but
    the tumour loses a sixth of its contrast and the ventricles a fifth.
    """
    plain = simulate_anatomy(Person(2, age=60), 4.0)
    if kind == "cavity":
        anatomy = simulate_anatomy(Person(2, age=60, cavities=1), 4.0)
        place = (anatomy.fractions[0] > 0.8) & (plain.fractions[0] < 0.2)
    else:
        anatomy, place = tumour(plain, 2) if kind == "tumour" else hydrocephalus(plain)
    brain, noise = plain.brain & anatomy.brain, rng.normal(0, 0.02, plain.brain.shape)
    elsewhere, there = tumour(anatomy, 3, place)
    scan, seen = (
        UNIT * np.abs(canonical(who, "T2w", 4.0) + noise).astype(np.float32) * brain
        for who in (anatomy, {"style": anatomy, "erases": plain, "invents": elsewhere}[model])
    )

    def style(image: np.ndarray) -> np.ndarray:
        return np.maximum(image, 0) ** 0.7

    def sample(_self: Harmonizer, prepared: Prepared, _label: int) -> np.ndarray:
        given = to_grid(seen, anatomy.affine, prepared.affine, prepared.image.shape)
        return (style(prepared.scaling.apply(given)) * prepared.mask)[None]

    monkeypatch.setattr(Harmonizer, "sample_planes", sample)
    fine = replace(bundle, config=replace(CONFIG, grid=GridConfig(4.0, (48, 64, 48))))
    found = Harmonizer(fine, prepare=PrepareConfig(register=False)).run(Volume(scan, anatomy.affine), "T2w", brain)
    unit, image = found.prepared.scaling.apply(scan), found.volume.data
    contrast, volume = contrast_and_volume(image, place, brain) / contrast_and_volume(style(unit), place, brain)
    assert volume == pytest.approx(1, abs=0.1)
    assert (kept if model == "erases" else 0.96) < contrast < 1.05
    apart = brain & ~ndimage.binary_dilation(place, iterations=3)
    new = ndimage.uniform_filter(np.where(brain, image - style(unit), 0), 3)
    if model == "invents":
        drawn = style(found.prepared.scaling.apply(seen)) - style(unit)
        assert drawn[there].mean() > 0.2
        assert np.abs(new[apart]).max() < 0.06
    elif model == "style":
        assert np.abs(new[apart]).max() < 0.03


@pytest.mark.parametrize("style", [lambda unit: 0.5 * unit + 0.4, lambda unit: np.maximum(unit, 0) ** 0.7])
def test_a_head_has_no_seam_at_the_brains_border_and_dark_air(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator, style: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Scalp and skull around a brain whose mask is cut at half the working grid's resolution."""
    anatomy = simulate_anatomy(Person(1, scalp=True), 3.0)
    brain, signal = anatomy.brain, canonical(anatomy, "T1w", 3.0)
    real, imaginary = rng.normal(0, 0.02, (2, *brain.shape))
    volume = Volume((UNIT * np.hypot(signal + real, imaginary)).astype(np.float32), anatomy.affine)
    monkeypatch.setattr(
        Harmonizer, "sample_planes", lambda _self, found, _label: (style(found.image) * found.mask)[None]
    )
    found = Harmonizer(bundle, prepare=PrepareConfig(register=False)).run(volume, "T1w", brain)
    unit, image = found.prepared.scaling.apply(volume.data), found.volume.data
    prepared = found.prepared
    ideal = fit_curve(prepared.image, found.model_image, prepared.mask).apply(unit)  # in the brain and out of it
    steps = []
    for axis in range(3):
        crossed = np.diff(brain, axis=axis)
        steps.append([np.abs(np.diff(values, axis=axis))[crossed] for values in (image, ideal)])
    step, wanted = np.concatenate(steps, axis=1)
    assert len(step) > 10000
    assert step.mean() < 1.02 * wanted.mean()
    assert np.quantile(step - wanted, 0.99) < 0.03
    outside = ndimage.distance_transform_edt(~(brain | (anatomy.scalp > 0.1))) > 1.5
    assert image[outside].mean() < 1.4 * unit[outside].mean()
    scalp = anatomy.scalp > 0.7
    assert np.abs(image - style(unit))[scalp].max() < 0.1


def test_unit_of_the_scan_does_not_matter(
    bundle: Bundle, scan: tuple[Volume, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, mask = scan
    harmonizer = knowing(bundle, monkeypatch, 0.7, 0.1)
    once, scaled = (harmonizer.run(volume.like(gain * volume.data), "T1w", mask).volume.data for gain in (1, 100))
    np.testing.assert_allclose(scaled, once, atol=1e-3)


def test_a_mask_is_estimated_where_none_is_given(
    bundle: Bundle, scan: tuple[Volume, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, mask = scan
    found = knowing(bundle, monkeypatch).run(volume, "T1w")
    assert found.prepared.steps[0] == "mask: estimated"
    assert np.abs(found.volume.data - found.prepared.scaling.apply(volume.data))[mask].max() < 0.05


@pytest.fixture(scope="module")
def tilted(scan: tuple[Volume, np.ndarray]) -> tuple[Volume, np.ndarray]:
    """The same head tilted by 25 degrees, with a header, and its mask."""
    affine = np.eye(4)
    affine[:3, :3] = turn(-25)
    header = nib.Nifti1Header()
    header.set_data_shape(scan[0].data.shape)
    header.set_sform(affine @ scan[0].affine, code=1)
    header["descrip"] = b"as it came"
    return Volume(scan[0].data, header.get_sform(), header), scan[1]


def test_a_tilted_head_comes_back_to_its_own_grid(
    bundle: Bundle, tilted: tuple[Volume, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, mask = tilted
    found = knowing(bundle, monkeypatch).run(volume, "T1w", mask)
    assert found.prepared.registration is not None
    assert found.prepared.registration.degrees > 15
    assert (found.space, found.stripped) == (None, False)
    np.testing.assert_array_equal(found.volume.affine, volume.affine)
    assert found.volume.header == volume.header
    unit = found.prepared.scaling.apply(volume.data)
    assert np.abs(found.volume.data - unit)[mask].mean() < 0.01


def test_template_space_has_the_templates_grid(
    bundle: Bundle, tilted: tuple[Volume, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, mask = tilted
    found = knowing(bundle, monkeypatch, space="template").run(volume, "T1w", mask)
    assert found.space == SPACE
    assert found.volume.data.shape == OUTPUT_SHAPE
    assert found.volume.data.min() >= 0
    np.testing.assert_array_equal(found.volume.affine, OUTPUT_AFFINE)
    assert found.volume.header["sform_code"] == 4
    inside = to_grid(template().brain, template().affine, OUTPUT_AFFINE, OUTPUT_SHAPE) > 0.5
    bright = found.volume.data > 0.3
    assert 2 * (bright & inside).sum() > 0.85 * (bright.sum() + inside.sum())


def test_intensity_of_the_source_is_the_scans_own_scale(
    bundle: Bundle, scan: tuple[Volume, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, mask = scan
    unit, source = (
        knowing(bundle, monkeypatch, intensity=kind).run(volume, "T1w", mask) for kind in ("unit", "source")
    )
    np.testing.assert_allclose(source.volume.data, source.prepared.scaling.undo(unit.volume.data), rtol=1e-5)
    assert np.percentile(source.volume.data[mask], 99.5) == pytest.approx(
        np.percentile(volume.data[mask], 99.5), rel=0.05
    )


def test_a_scan_below_zero_comes_back_in_its_own_units_and_as_no_negative_image(
    bundle: Bundle, scan: tuple[Volume, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, mask = scan
    shifted = volume.like(volume.data - 300)
    unit, source = (
        knowing(bundle, monkeypatch, intensity=kind).run(shifted, "T1w", mask) for kind in ("unit", "source")
    )
    scaling = source.prepared.scaling
    assert scaling.low < 0
    assert unit.volume.data.min() >= 0
    off = np.abs(unit.volume.data - np.maximum(scaling.apply(shifted.data), 0))[mask]
    assert np.quantile(off, 0.99) < 0.01
    assert off.max() < 0.05  # beside voxels that are darker than unit intensity 0
    np.testing.assert_allclose(source.volume.data, scaling.undo(unit.volume.data), atol=0.1)
    assert source.volume.data.min() >= scaling.low - 0.1


@pytest.mark.parametrize(("kind", "ground"), [("unit", 0.0), ("source", 0.25)])
def test_what_surrounds_a_stripped_brain_in_standard_scores_stays_empty(
    bundle: Bundle, scan: tuple[Volume, np.ndarray], monkeypatch: pytest.MonkeyPatch, kind: str, ground: float
) -> None:
    """This holds although the value of the background is in the middle of the brain's intensities."""
    volume, mask = scan
    inside = volume.data[mask]
    scored = volume.like(np.where(mask, (volume.data - inside.mean()) / inside.std(), 0.25).astype(np.float32))
    found = knowing(bundle, monkeypatch, 0.5, 0.4, intensity=kind).run(scored, "T1w")
    assert found.stripped
    assert not any("air" in flag for flag in found.flags)
    empty = ~mask & ~found.prepared.brain
    assert empty.sum() > 0.99 * (~mask).sum()
    assert (found.volume.data[empty] == np.float32(ground)).all()
    assert found.volume.data[mask].std() > 0.05


@pytest.mark.parametrize("settings", [{}, {"intensity": "source"}, {"space": "template"}])
def test_stripping_leaves_nothing_outside_the_mask(
    bundle: Bundle, scan: tuple[Volume, np.ndarray], monkeypatch: pytest.MonkeyPatch, settings: dict[str, str]
) -> None:
    volume, mask = scan
    harmonizer = knowing(bundle, monkeypatch, 0.5, 0.4, **settings)
    harmonizer = Harmonizer(bundle, harmonizer.settings, PrepareConfig(skull="strip"))
    assert not harmonizer.prepare.n4  # intensities are prepared as the model was trained
    found = harmonizer.run(volume, "T1w", mask)
    assert found.stripped
    assert "skull: removed" in found.prepared.steps
    if found.space is None:
        assert not found.volume.data[~mask].any()
        assert (found.volume.data[mask] > 0).all()
    else:
        assert 0.1 < (found.volume.data > 0).mean() < 0.3


def test_template_space_without_registration_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match=r"prepare\.register=true"):
        Harmonizer(bundle, HarmonizeConfig(space="template"), PrepareConfig(register=False))


def test_without_registration_a_head_is_checked_by_the_one_that_found_its_brain(bundle: Bundle) -> None:
    head = simulate_anatomy(Person(4, scalp=True), 4.0)
    nod = np.eye(4)
    nod[:3, :3] = turn(10)
    scan = Volume(render(head, SITES[0], "T2w", np.random.default_rng(0), 4.0).astype(np.float32), nod @ head.affine)
    ready = Harmonizer(bundle, prepare=PrepareConfig(register=False)).ready(scan, "T2w")
    assert ready.prepared.steps[3].startswith("registration: only to find the brain (affine, quality 0.")
    np.testing.assert_array_equal(ready.prepared.affine[:3, :3], CONFIG.grid.spacing_mm * np.eye(3))  # not rotated
    with pytest.raises(RefusedError, match="a T1w: fluid darker than grey"):
        check_scan("T1w", ready.figures, CONFIG.quality)


def test_planes_disagree_only_if_there_are_several(bundle: Bundle, scan: tuple[Volume, np.ndarray]) -> None:
    doubt = next(measure for measure in measures(CONFIG.quality) if measure.name == "disagreement")
    for planes in (("axial",), ("axial", "coronal")):
        found = Harmonizer(bundle, HarmonizeConfig(planes=planes)).run(scan[0], "T1w", scan[1])
        assert (found.quality.get("disagreement", 0) > 0) == (len(planes) > 1)
        assert ("disagreement" in found.quality) == (len(planes) > 1)
        assert any(flag.startswith(doubt.label) for flag in found.flags) == (len(planes) > 1)


def test_a_brain_larger_than_the_working_grid_is_flagged(bundle: Bundle, scan: tuple[Volume, np.ndarray]) -> None:
    volume, mask = scan
    for size, cut in ((1.0, False), (1.5, True)):
        grown = Volume(volume.data, np.diag([size, size, size, 1]) @ volume.affine)
        found = Harmonizer(bundle, prepare=PrepareConfig(register=False)).run(grown, "T1w", mask)
        assert (found.quality["held"] < 0.97) == cut
        assert any(flag.startswith("brain in grid: ") for flag in found.flags) == cut


def test_label_of_the_sequence_reaches_the_model(
    bundle: Bundle, scan: tuple[Volume, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    labels: list[int] = []

    def sample(_self: Harmonizer, prepared: Prepared, label: int) -> np.ndarray:
        labels.append(label)
        return prepared.image[None]

    monkeypatch.setattr(Harmonizer, "sample_planes", sample)
    for sequence in ("T2w", "T1w"):
        Harmonizer(bundle).run(as_sequence(scan, sequence), sequence, scan[1])
    assert labels == [1, 0]


def test_unknown_sequence_is_refused_before_any_work(bundle: Bundle, scan: tuple[Volume, np.ndarray]) -> None:
    with pytest.raises(ModelError, match="sequence 'FLAIR'; expected one of T1w, T2w"):
        Harmonizer(bundle).run(scan[0], "FLAIR", np.ones((2, 2, 2), bool))


def test_mask_that_does_not_fit_is_refused(bundle: Bundle, scan: tuple[Volume, np.ndarray]) -> None:
    with pytest.raises(DataError, match="mask of shape"):
        Harmonizer(bundle).run(scan[0], "T1w", scan[1][1:])


def test_settings_are_the_bundles_unless_given(bundle: Bundle) -> None:
    assert Harmonizer(bundle).settings == CONFIG.harmonize
    assert Harmonizer(bundle, HarmonizeConfig(steps=4)).settings.steps == 4


def test_smaller_batches_change_nothing_else_and_end_at_one() -> None:
    settings = HarmonizeConfig(batch_slabs=5, steps=3)
    assert with_smaller_batches(settings) == replace(settings, batch_slabs=2)
    assert with_smaller_batches(with_smaller_batches(with_smaller_batches(settings))).batch_slabs == 1
