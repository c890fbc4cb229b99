"""Quality measures of a scan, and the scans that are refused by them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from mmh_ray.config import GridConfig, PrepareConfig, QualityConfig
from mmh_ray.errors import RefusedError
from mmh_ray.imaging.preprocess import prepare_volume
from mmh_ray.imaging.registration import Registration
from mmh_ray.imaging.volume import Volume
from mmh_ray.quality.checks import check_prepared, check_scan
from mmh_ray.quality.describe import describe_outcome, describe_scan
from mmh_ray.quality.measures import flags, measures
from mmh_ray.simulation.anatomy import Anatomy, Person, simulate_anatomy
from mmh_ray.simulation.phantom import SITES, canonical, render

pytestmark = pytest.mark.fast

CONFIG = QualityConfig()


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    """A person on the template's axes, whose registration is almost the identity."""
    return simulate_anatomy(Person(3), 3.0)


def figures_of(anatomy: Anatomy, data: np.ndarray, quality: float = 0.6) -> dict[str, float]:
    """Measures with the identity as registration."""
    registration = Registration(np.eye(4), quality, "given space")
    return describe_scan(Volume(data.astype(np.float32), anatomy.affine), anatomy.brain, registration)


@pytest.mark.parametrize("sequence", ["T1w", "T2w"])
@pytest.mark.parametrize("gain", [1.0, 1000.0])
def test_a_scan_passes_as_what_it_is_and_not_as_another(anatomy: Anatomy, sequence: str, gain: float) -> None:
    figures = figures_of(anatomy, gain * canonical(anatomy, sequence, 3.0))
    check_scan(sequence, figures, CONFIG)
    check_scan("PDw", figures, CONFIG)  # for which there are no checks
    for other in {"T1w", "T2w"} - {sequence}:
        with pytest.raises(RefusedError, match=f"expected a {other}: fluid (brighter|darker) than grey by"):
            check_scan(other, figures, CONFIG)


def test_bone_in_the_rim_of_a_mask_changes_no_contrast() -> None:
    head = simulate_anatomy(Person(3, scalp=True), 4.0)
    scan, registration = canonical(head, "T2w", 4.0), Registration(np.eye(4), 0.6, "given space")
    masks = head.brain, ndimage.binary_dilation(head.brain)
    exact, loose = (describe_scan(Volume(scan, head.affine), mask, registration) for mask in masks)
    assert loose["brain_ml"] > 1.1 * exact["brain_ml"]
    for name in ("fluid_contrast", "white_contrast"):
        assert loose[name] == pytest.approx(exact[name], abs=0.02)


@pytest.mark.parametrize("sequence", ["T1w", "T2w", "FLAIR"])
def test_noise_is_refused(anatomy: Anatomy, rng: np.random.Generator, sequence: str) -> None:
    figures = figures_of(anatomy, rng.rayleigh(1, anatomy.brain.shape) * anatomy.brain)
    assert abs(figures["fluid_contrast"]) < CONFIG.least_contrast
    with pytest.raises(RefusedError):
        check_scan(sequence, figures, CONFIG)


def test_a_head_that_the_template_does_not_fit_is_refused(anatomy: Anatomy) -> None:
    scan = canonical(anatomy, "T1w", 3.0)
    with pytest.raises(RefusedError, match="fits with a quality of 0\\.10; expected 0\\.2 or more"):
        check_scan("T1w", figures_of(anatomy, scan, quality=0.1), CONFIG)
    check_scan("T1w", figures_of(anatomy, scan, quality=0.25), CONFIG)  # only flagged
    assert any(flag.startswith("fits the template") for flag in flags({"registration": 0.25}, CONFIG))


def test_a_flair_under_the_name_of_a_t1w_is_refused(anatomy: Anatomy) -> None:
    """Fluid is dark in both; white matter is not brighter than grey."""
    fluid, grey, white, lesion = anatomy.fractions
    figures = figures_of(anatomy, 0.2 * fluid + 1.0 * grey + 0.95 * white + 1.2 * lesion)
    check_scan("FLAIR", figures, CONFIG)
    with pytest.raises(RefusedError, match="white matter brighter than grey by 0\\.1"):
        check_scan("T1w", figures, CONFIG)


def test_a_field_of_view_that_cuts_the_brain_shows(anatomy: Anatomy) -> None:
    scan, half = canonical(anatomy, "T1w", 3.0), anatomy.brain.shape[2] // 2
    registration = Registration(np.eye(4), 0.6, "given space")
    whole = figures_of(anatomy, scan)
    cut = describe_scan(Volume(scan[:, :, :half], anatomy.affine), anatomy.brain[:, :, :half], registration)
    assert whole["coverage"] == pytest.approx(1, abs=0.01)
    assert cut["coverage"] < 0.7
    assert cut["brain_ml"] < 0.7 * whole["brain_ml"]
    assert any(flag.startswith("brain in view") for flag in flags(cut, QualityConfig()))


def test_without_a_registration_only_the_volume_is_known(anatomy: Anatomy) -> None:
    found = describe_scan(Volume(canonical(anatomy, "T1w", 3.0), anatomy.affine), anatomy.brain, None)
    assert found == {
        "brain_ml": pytest.approx(anatomy.brain.sum() * 27 / 1000),
        "background": pytest.approx(0, abs=0.01),
    }
    check_scan("T2w", found, CONFIG)
    assert any(flag.startswith("not checked: ") for flag in flags(found, CONFIG))


@pytest.mark.parametrize(("air", "flagged"), [(0.02, False), (0.5, True)])
def test_air_that_is_not_dark_is_flagged(anatomy: Anatomy, air: float, flagged: bool) -> None:
    """Either a constant was added to all intensities, or the background of a z-scored scan is 0, above its minimum."""
    tissue = canonical(anatomy, "T1w", 3.0)
    scan = 900 * (tissue / np.percentile(tissue[anatomy.brain], 99.5) * (1 - air) + air)
    figures = figures_of(anatomy, scan)
    assert figures["background"] == pytest.approx(air, abs=0.001)
    assert any(flag.startswith("air: ") for flag in flags(figures, CONFIG)) == flagged


def test_an_unchanged_image_has_perfect_preservation(anatomy: Anatomy) -> None:
    scan = Volume(canonical(anatomy, "T1w", 3.0), anatomy.affine)
    expected = {"preservation": pytest.approx(1), "bright": 0}
    assert describe_outcome(scan, scan, anatomy.brain) == expected
    loud = scan.like(2 * scan.data)
    assert describe_outcome(scan, loud, anatomy.brain)["bright"] > 0.3


def test_every_bound_has_its_flag() -> None:
    config = QualityConfig()
    good = {
        "preservation": 0.97,
        "registration": 0.6,
        "coverage": 1,
        "held": 1,
        "brain_ml": 1300,
        "background": 0.02,
        "disagreement": 0.02,
        "bright": 0,
    }
    assert flags(good, config) == ()
    for measure in measures(config):
        for bound, beyond in ((measure.low, -1), (measure.high, 1)):
            if bound is not None:
                [flag] = flags(good | {measure.name: bound + beyond * 0.001}, config)
                assert flag.startswith(measure.label)
    assert len(flags(dict.fromkeys(good, float("nan")), config)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("sequence", ["T1w", "T2w"])
def test_strong_shading_as_at_7_tesla_is_not_a_wrong_sequence(sequence: str, with_mask: bool) -> None:
    person = simulate_anatomy(Person(1, scalp=True), 3.0)
    scan = render(person, SITES[0], sequence, np.random.default_rng(1), 3.0)
    middle = np.argwhere(person.brain).mean(axis=0)
    distance = np.sqrt(((np.stack(np.indices(scan.shape), axis=-1) - middle) ** 2).sum(axis=-1)) * 3.0
    field = 0.25 + 1.6 * np.exp(-(distance**2) / (2 * 55**2))
    shaded = Volume((scan * field).astype(np.float32), person.affine)
    grid, settings = GridConfig(), PrepareConfig()
    prepared = prepare_volume(shaded, person.brain if with_mask else None, grid, settings)
    figures = describe_scan(shaded, prepared.brain, prepared.registration, prepared)
    check_prepared(sequence, figures, CONFIG, shaded, prepared, grid, settings)
    other = "T2w" if sequence == "T1w" else "T1w"
    with pytest.raises(RefusedError, match=f"expected a {other}"):
        check_prepared(other, figures, CONFIG, shaded, prepared, grid, settings)


def test_a_figure_just_beyond_its_bound_is_not_written_as_the_bound() -> None:
    bound = CONFIG.least_registration
    [flag] = flags({"registration": bound - 1e-7}, CONFIG)
    assert flag == f"fits the template: {bound - 1e-7:.7g} is below {bound:g}"
