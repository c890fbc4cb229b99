"""Label maps are read onto the scan's grid as tissues, or refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmh_ray.errors import DataError
from mmh_ray.evaluation.inputs.labels import LabelMap, read_label_map
from mmh_ray.imaging.volume import Volume, write_volume

pytestmark = pytest.mark.fast

SHAPE = (24, 20, 16)
AFFINE = np.diag([2.0, 2, 2, 1])
LOOKS = {"T1w": (0.2, 0.6, 1.0), "T2w": (1.0, 0.6, 0.4), "FLAIR": (0.1, 0.7, 0.6), "PDw": (0.9, 1.0, 0.8)}
"""Intensities of fluid, grey and white matter."""
DLMUSE, FREESURFER, BIDS = (51, 120, 81), (4, 1012, 41), (3, 1, 2)


@pytest.fixture
def tissues() -> np.ndarray:
    """Blocks of fluid, grey and white matter inside a rim of nothing."""
    found = np.zeros(SHAPE, np.uint8)
    for code in (1, 2, 3):
        found[6 * code - 4 : 6 * code + 2, 2:-2, 2:-2] = code
    return found


def _scan(tissues: np.ndarray, sequence: str = "T1w") -> Volume:
    return Volume(np.array([0.0, *LOOKS[sequence]], np.float32)[tissues], AFFINE)


def _numbered(tissues: np.ndarray, numbers: tuple[int, int, int]) -> np.ndarray:
    return np.array([0, *numbers])[tissues]


def _read(folder: Path, labels: np.ndarray, scan: Volume, affine: np.ndarray = AFFINE, **given: Any) -> LabelMap:
    path = folder / "sub-1_dseg.nii.gz"
    write_volume(Volume(labels.astype(np.float32), affine), path, np.int16)
    mask, sequence = given.pop("mask", scan.data > 0), given.pop("sequence", "T1w")
    return read_label_map(str(path), scan, mask, sequence, **given)


@pytest.mark.parametrize(
    ("numbers", "names", "table"),
    [
        (DLMUSE, ("dlmuse",), "dlmuse"),
        (DLMUSE, ("other", "DLMUSE"), "dlmuse"),
        (FREESURFER, ("aparcaseg",), "freesurfer"),
        (FREESURFER, ("synthseg",), "freesurfer"),
        ((1, 2, 3), ("tissues",), "tissues"),
        ((1, 2, 3), ("manual",), "tissues"),
        ((1, 2, 3), (), "tissues"),
    ],
)
def test_auto_goes_by_name_then_by_numbers(tmp_path: Path, tissues, numbers, names, table) -> None:
    found = _read(tmp_path, _numbered(tissues, numbers), _scan(tissues), names=names)
    assert (found.table, found.inside, found.unknown, found.lacking) == (table, 1, {}, ())
    assert np.array_equal(found.tissues, tissues)


@pytest.mark.parametrize(("numbers", "table"), [(DLMUSE, "dlmuse"), (FREESURFER, "freesurfer"), (BIDS, "bids")])
def test_a_table_that_is_set_needs_no_name(tmp_path: Path, tissues, numbers, table) -> None:
    found = _read(tmp_path, _numbered(tissues, numbers), _scan(tissues), table=table)
    assert np.array_equal(found.tissues, tissues)
    assert found.table == table


@pytest.mark.parametrize("sequence", ["T1w", "T2w", "FLAIR"])
@pytest.mark.parametrize("numbers", [BIDS, (1, 3, 2), (2, 1, 3), (3, 2, 1)])
def test_unnamed_maps_that_number_1_to_3_otherwise_are_refused(tmp_path: Path, tissues, numbers, sequence) -> None:
    scan = _scan(tissues, sequence)
    assert _read(tmp_path, tissues, scan, sequence=sequence).table == "tissues"
    with pytest.raises(
        DataError, match=r"no brighter than .* Set evaluate.label_table to .* bids \(1 GM, 2 WM, 3 CSF\)"
    ):
        _read(tmp_path, _numbered(tissues, numbers), scan, sequence=sequence)


def test_where_the_order_tells_nothing_an_unnamed_map_is_refused(tmp_path: Path, tissues) -> None:
    with pytest.raises(DataError, match="because the brightness of tissues in PDw does not reveal it"):
        _read(tmp_path, tissues, _scan(tissues, "PDw"), sequence="PDw")
    assert _read(tmp_path, tissues, _scan(tissues, "PDw"), sequence="PDw", table="tissues").table == "tissues"


@pytest.mark.parametrize("numbers", [DLMUSE, (1, 2, 4), (0, 1, 2), (1, 2, -3)])
def test_an_unnamed_map_of_other_numbers_is_refused(tmp_path: Path, tissues, numbers) -> None:
    expected = r"no known table in its name; expected 1, 2 and 3, or desc- one of dlmuse"
    with pytest.raises(DataError, match=expected):
        _read(tmp_path, _numbered(tissues, numbers), _scan(tissues))


@pytest.mark.parametrize(
    ("numbers", "table"), [(DLMUSE, "freesurfer"), (FREESURFER, "dlmuse"), (FREESURFER, "tissues"), (DLMUSE, "bids")]
)
def test_the_wrong_table_is_refused(tmp_path: Path, tissues, numbers, table) -> None:
    with pytest.raises(DataError, match=rf"a label map with \d+% of its labelled voxels in the table {table}"):
        _read(tmp_path, _numbered(tissues, numbers), _scan(tissues), table=table)


@pytest.mark.parametrize("table", ["freesurfer", "bids"])
def test_a_wrong_table_that_knows_the_numbers_is_seen_by_the_order_of_tissues(tmp_path: Path, tissues, table) -> None:
    with pytest.raises(DataError, match=rf"read with the table {table}, shows .* the brightness order of .* in T1w"):
        _read(tmp_path, tissues, _scan(tissues), table=table)
    with pytest.raises(DataError, match=r"read with the table tissues, shows .* no brighter than"):
        _read(tmp_path, _numbered(tissues, BIDS), _scan(tissues), names=("tissues",))


def test_grey_and_white_alike_in_a_t2w_or_flair_are_no_reason_to_refuse_a_named_map(tmp_path: Path, tissues) -> None:
    for sequence in ("T2w", "FLAIR"):
        look = np.array([0, LOOKS[sequence][0], 0.6, 0.61], np.float32)
        scan = Volume(look[tissues], AFFINE)
        assert _read(tmp_path, tissues, scan, sequence=sequence, names=("tissues",)).inside == 1
        with pytest.raises(DataError, match="no brighter than"):
            _read(tmp_path, tissues, scan, sequence=sequence)


def test_unknown_numbers_count_as_none_and_are_counted(tmp_path: Path, tissues) -> None:
    labels = _numbered(tissues, DLMUSE)
    labels[2, 2:5, 2] = 999
    labels[2, 5, 2] = -7
    found = _read(tmp_path, labels, _scan(tissues), names=("dlmuse",))
    assert found.unknown == {999: 3, -7: 1}
    assert not found.tissues[2, 2:6, 2].any()
    assert found.remarks() == ["label numbers that are not in the table dlmuse are ignored: -7, 999"]


def test_deep_grey_and_brain_stem_are_known_and_no_tissue(tmp_path: Path, tissues) -> None:
    labels = _numbered(tissues, DLMUSE)
    labels[8:14, :6][labels[8:14, :6] > 0] = 59  # thalamus
    found = _read(tmp_path, labels, _scan(tissues), names=("dlmuse",))
    assert found.unknown == {}
    assert not found.tissues[8:14, :6].any()


def test_a_tissue_of_few_voxels_is_said_to_be_lacking(tmp_path: Path, tissues) -> None:
    labels = tissues * (tissues != 1)
    labels[2, 2, 2] = 1
    found = _read(tmp_path, labels, _scan(tissues), names=("tissues",))
    assert found.lacking == ("CSF",)
    assert found.remarks() == ["fewer than 50 labelled voxels of CSF: not measured"]


def test_labels_outside_the_brain_mask_do_not_count_and_their_share_is_known(tmp_path: Path, tissues) -> None:
    mask = tissues > 0
    mask[16:] = False  # of six planes of white matter four lack, a third of the solid tissue
    found = _read(tmp_path, tissues, _scan(tissues), mask=mask, names=("tissues",))
    assert found.inside == pytest.approx(2 / 3)
    assert not found.tissues[~mask].any()
    mask[8:] = False
    with pytest.raises(DataError, match="with 0% of its grey and white matter in the scan's brain mask"):
        _read(tmp_path, tissues, _scan(tissues), mask=mask, names=("tissues",))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_a_finer_grid_and_other_axes_are_resampled_through_the_affines(tmp_path: Path, tissues, order) -> None:
    fine = tissues.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    affine = np.diag([1.0, 1, 1, 1])
    affine[:3, 3] = -0.5
    turned = affine.copy()
    turned[:3, :3] = affine[:3, :3][:, order]
    found = _read(tmp_path, np.transpose(fine, order), _scan(tissues), turned, names=("tissues",))
    assert np.array_equal(found.tissues, tissues)


def test_a_cropped_and_flipped_grid_is_resampled_too(tmp_path: Path, tissues) -> None:
    labels = tissues[::-1, 1:-1, 1:]
    affine = np.diag([-2.0, 2, 2, 1])
    affine[:3, 3] = 2 * (SHAPE[0] - 1), 2, 2
    assert np.array_equal(_read(tmp_path, labels, _scan(tissues), affine, names=("tissues",)).tissues, tissues)


def test_a_map_that_lies_elsewhere_is_refused(tmp_path: Path, tissues) -> None:
    affine = AFFINE.copy()
    affine[0, 3] = 200
    with pytest.raises(DataError, match="with 0% of its labelled voxels in the scan's field of view"):
        _read(tmp_path, tissues, _scan(tissues), affine, names=("tissues",))


def test_a_map_in_a_templates_space_must_have_the_scans_grid(tmp_path: Path, tissues) -> None:
    given: dict[str, Any] = {"names": ("tissues",), "space": "MNI152NLin2009cAsym"}
    assert np.array_equal(_read(tmp_path, tissues, _scan(tissues), **given).tissues, tissues)
    affine = AFFINE.copy()
    affine[0, 3] = 2
    with pytest.raises(DataError, match="in the space MNI152NLin2009cAsym, on another grid"):
        _read(tmp_path, tissues, _scan(tissues), affine, **given)


def test_probabilities_empty_maps_and_no_image_are_refused(tmp_path: Path, tissues) -> None:
    path, scan = tmp_path / "sub-1_dseg.nii.gz", _scan(tissues)
    write_volume(Volume(tissues * np.float32(0.3), AFFINE), path)
    with pytest.raises(DataError, match="fractions"):
        read_label_map(str(path), scan, tissues > 0, "T1w", "tissues")
    with pytest.raises(DataError, match="constant image"):
        _read(tmp_path, np.zeros(SHAPE), scan)
    with pytest.raises(DataError, match="without grey and white matter"):
        _read(tmp_path, tissues == 1, scan, table="tissues")
    path.write_bytes(b"no image")
    with pytest.raises(DataError, match="unreadable"):
        read_label_map(str(path), scan, tissues > 0, "T1w")
