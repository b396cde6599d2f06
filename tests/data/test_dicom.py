import io
import sys

import gdcm
import numpy as np
import pydicom
import pytest
from photograph_files import (
    OPHTHALMIC_16_BIT,
    REFUSED_DICOM,
    deep,
    dicom,
    gradient,
    jpeg_frame,
    scaled,
    write_dicom,
)
from PIL import Image
from pydicom import uid

from mtl_jax.data import images
from mtl_jax.errors import UserError


def read(path):
    photograph = images.open_photograph(path)
    return np.asarray(photograph.picture), photograph.conversion


def rgb_of_ybr(ybr, bits):
    """By the matrix of ITU-R BT.601 inverted, in place of the standard's decimals."""
    forward = np.array([[0.299, 0.587, 0.114], [-0.299, -0.587, 0.886], [0, 0, 0]])
    forward[2] = 0.701, -0.587, -0.114
    forward[1:] /= [[1.772], [1.402]]
    centred = ybr.astype(float) - [0, 2 ** (bits - 1), 2 ** (bits - 1)]
    rgb = centred @ np.linalg.inv(forward).T
    return np.clip(rgb, 0, 2**bits - 1)


@pytest.mark.parametrize("planar", [0, 1])
def test_8_bit_rgb_is_read_as_it_is(tmp_path, planar):
    values = deep(8).astype(np.uint8)
    stored = np.moveaxis(values, -1, 0) if planar else values
    write_dicom(
        tmp_path / "a.dcm",
        values,
        PlanarConfiguration=planar,
        PixelData=stored.tobytes(),
    )
    found, conversion = read(tmp_path / "a.dcm")
    assert (found == values).all()
    assert conversion == ""


@pytest.mark.parametrize("bits", [9, 10, 12, 16])
def test_deep_rgb_is_scaled_by_the_bits_that_are_stored(tmp_path, bits):
    values = deep(bits)
    path = tmp_path / "1.2.840.10008"
    write_dicom(path, values, BitsStored=bits, SOPClassUID=OPHTHALMIC_16_BIT)
    found, conversion = read(path)
    assert (found == scaled(values, bits)).all()
    assert images.conversion_sentences({conversion: 2}) == [
        f"2 photographs of {bits} bits per channel were reduced to 8 bits."
    ]


def test_8_bits_may_lie_in_16(tmp_path):
    values = deep(8)
    write_dicom(tmp_path / "a", values, BitsStored=8)
    found, conversion = read(tmp_path / "a")
    assert (found == values).all()
    assert conversion == ""


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_ybr_is_converted_to_rgb(tmp_path, bits):
    ybr = deep(bits)
    ybr = ybr.astype(np.uint8) if bits == 8 else ybr
    write_dicom(
        tmp_path / "a", ybr, BitsStored=bits, PhotometricInterpretation="YBR_FULL"
    )
    found, _ = read(tmp_path / "a")
    expected = rgb_of_ybr(ybr, bits) * 255 / (2**bits - 1)
    assert np.abs(found - expected).max() < (1.01 if bits == 8 else 0.6)


@pytest.mark.parametrize("bits", [8, 12])
def test_ybr_may_have_half_the_colours(tmp_path, bits):
    """Two pixels share the colours of the first: Y Y B R."""
    ybr = deep(bits)
    ybr[:, 1::2, 1:] = ybr[:, ::2, 1:]
    ybr = ybr.astype(np.uint8) if bits == 8 else ybr
    pairs = np.stack([ybr[:, ::2, 0], ybr[:, 1::2, 0], ybr[:, ::2, 1], ybr[:, ::2, 2]])
    write_dicom(
        tmp_path / "a",
        ybr,
        BitsStored=bits,
        PhotometricInterpretation="YBR_FULL_422",
        PixelData=np.moveaxis(pairs, 0, -1).tobytes(),
    )
    found, _ = read(tmp_path / "a")
    expected = rgb_of_ybr(ybr, bits) * 255 / (2**bits - 1)
    assert np.abs(found - expected).max() < 1.01


@pytest.mark.parametrize("bits", [8, 16])
def test_a_palette_counts_by_its_colours(tmp_path, bits):
    dtype = np.uint8 if bits == 8 else np.uint16
    palette = deep(bits, shape=(200, 3)).astype(dtype)
    indices = np.random.default_rng(1).integers(0, 200, (48, 64)).astype(np.uint8)
    indices[0, 0], indices[0, 1] = 0, 199
    fields = {
        f"{colour}PaletteColorLookupTable{part}": value
        for i, colour in enumerate(("Red", "Green", "Blue"))
        for part, value in (
            ("Descriptor", [200, 0, bits]),
            ("Data", palette[:, i].tobytes()),
        )
    }
    write_dicom(
        tmp_path / "a",
        indices,
        PhotometricInterpretation="PALETTE COLOR",
        SamplesPerPixel=1,
        PlanarConfiguration=None,
        **fields,
    )
    found, conversion = read(tmp_path / "a")
    assert (found == scaled(palette[indices], bits)).all()
    assert bool(conversion) == (bits == 16)


@pytest.mark.parametrize("photometric", ["YBR_FULL_422", "RGB"])
def test_reads_jpeg(tmp_path, photometric, recwarn, caplog):
    """Cameras write the second, although JPEG files hold YBR."""
    frame = jpeg_frame(gradient(), quality=95)
    write_dicom(
        tmp_path / "a",
        frame,
        Rows=48,
        Columns=64,
        TransferSyntaxUID=uid.JPEGBaseline8Bit,
        PhotometricInterpretation=photometric,
    )
    found, conversion = read(tmp_path / "a")
    assert np.abs(found.astype(int) - gradient()).max() <= 12
    assert conversion == ""
    assert not recwarn.list
    assert not caplog.records


@pytest.mark.parametrize(
    ("syntax", "bits"),
    [
        ("JPEGLosslessProcess14_1", 8),
        ("JPEGLosslessProcess14_1", 12),
        ("JPEGLosslessProcess14_1", 16),
        ("JPEGLSLossless", 8),
        ("JPEGLSLossless", 12),
        ("JPEGLSLossless", 16),
        ("JPEG2000Lossless", 8),
    ],
)
def test_reads_what_is_compressed_without_loss(tmp_path, syntax, bits):
    """Written by GDCM, which does not write colours as JPEG 2000 of more bits."""
    values = deep(bits) if bits > 8 else deep(8).astype(np.uint8)
    write_dicom(tmp_path / "raw", values, BitsStored=bits)
    reader = gdcm.ImageReader()
    reader.SetFileName(str(tmp_path / "raw"))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(tmp_path / "a"))
    assert writer.Write()
    assert pydicom.dcmread(tmp_path / "a").file_meta.TransferSyntaxUID.is_compressed
    found, conversion = read(tmp_path / "a")
    assert (found == scaled(values, bits)).all()
    assert bool(conversion) == (bits > 8)


def test_reads_run_lengths(tmp_path):
    dataset = dicom(deep(12), BitsStored=12)
    dataset.compress(uid.RLELossless)
    dataset.save_as(tmp_path / "a", enforce_file_format=True)
    assert (read(tmp_path / "a")[0] == scaled(deep(12), 12)).all()


def test_reads_bytes_that_are_not_on_the_disk():
    buffer = io.BytesIO()
    dicom(gradient()).save_as(buffer, enforce_file_format=True)
    found = images.read_photograph("a.zip/a.dcm", buffer.getvalue())
    assert (found == gradient()).all()


@pytest.mark.parametrize(
    ("fields", "reason"), REFUSED_DICOM.values(), ids=REFUSED_DICOM
)
def test_refused_in_one_sentence(tmp_path, fields, reason):
    path = tmp_path / "a.dcm"
    pixels = b"video" if "TransferSyntaxUID" in fields else gradient()
    write_dicom(path, pixels, **{"Rows": 48, "Columns": 64, **fields})
    check_refused(path, reason)


def check_refused(path, reason):
    with pytest.raises(UserError, match=reason) as caught:
        images.open_photograph(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_few_values_in_many_bits_are_refused(tmp_path):
    write_dicom(tmp_path / "a", deep(8), BitsStored=16)
    check_refused(tmp_path / "a", "claims 16 bits.*exceeds 255 of 65535")


def test_extended_jpeg_of_12_bits_is_refused(tmp_path):
    write_dicom(
        tmp_path / "a",
        jpeg_frame(gradient()),
        Rows=48,
        Columns=64,
        BitsAllocated=16,
        BitsStored=12,
        TransferSyntaxUID=uid.JPEGExtended12Bit,
    )
    check_refused(tmp_path / "a", "JPEG Extended.*12 bits")


@pytest.mark.parametrize("share", [0.02, 0.1, 0.6, 0.99])
def test_truncated_files_are_refused(tmp_path, share):
    write_dicom(tmp_path / "whole", gradient())
    data = (tmp_path / "whole").read_bytes()
    (tmp_path / "a").write_bytes(data[: int(len(data) * share)])
    check_refused(tmp_path / "a", "damaged|modality unknown")


def test_without_pydicom_the_extra_is_named(tmp_path, monkeypatch):
    write_dicom(tmp_path / "a.dcm", gradient())
    monkeypatch.setitem(sys.modules, "pydicom", None)
    check_refused(
        tmp_path / "a.dcm",
        r"pydicom is not installed; install mtl_jax\[dicom\], or mtl_jax\[all\] for",
    )


def test_a_directory_is_searched_for_dicom(tmp_path):
    write_dicom(tmp_path / "a.DCM", gradient())
    write_dicom(tmp_path / "1.2.3", gradient())
    assert images.find_photographs(tmp_path) == [tmp_path / "a.DCM"]
    assert images.find_photographs(tmp_path / "1.2.3") == [tmp_path / "1.2.3"]


def test_a_mask_may_be_dicom(tmp_path):
    mask = np.zeros((40, 40, 3), np.uint8)
    mask[10:20, 10:30] = 255
    write_dicom(tmp_path / "a", mask)
    assert (images.read_mask(tmp_path / "a") == mask[..., 0]).all()
    assert Image.fromarray(mask).convert("L").getextrema() == (0, 255)
