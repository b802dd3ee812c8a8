"""Videos in files."""

import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from headforce import HeadforceError
from headforce.run.video import need_av, pictures, read_video, write_film


def moving(frames=4, height=32, width=48):
    """A bright square that moves to the right, [F, H, W, 3] bytes."""
    video = np.full((frames, height, width, 3), 40, np.uint8)
    for number, frame in enumerate(video):
        frame[8:24, 8 * number : 8 * number + 16] = (220, 120, 60)
    return video


def test_a_film_is_read_as_it_was_written(tmp_path):
    video = moving(height=240, width=360)
    write_film(tmp_path / "a.mp4", video, rate=8)
    (read,) = read_video(tmp_path / "a.mp4")
    assert read.shape == video.shape
    assert read.dtype == np.uint8
    assert np.abs(read.astype(int) - video).mean() < 4  # H.264 loses a little
    with need_av().open(str(tmp_path / "a.mp4")) as film:
        assert film.streams.video[0].average_rate == 8
        assert film.streams.video[0].codec_context.name == "h264"


def test_small_and_odd_pictures_are_enlarged_to_even_ones(tmp_path):
    write_film(tmp_path / "a.mp4", moving(height=81, width=47), rate=8)  # times 3 is 243 x 141
    (read,) = read_video(tmp_path / "a.mp4")
    assert read.shape[1:3] == (244, 142)


@pytest.mark.parametrize("name", ["a.npy", "a.pt", "a.safetensors"])
def test_tensors(tmp_path, name):
    tensor = torch.arange(2 * 3 * 4 * 5 * 6, dtype=torch.float32).reshape(2, 3, 4, 5, 6)
    if name == "a.npy":
        np.save(tmp_path / name, tensor.numpy())
    elif name == "a.pt":
        torch.save({"video": tensor.bfloat16()}, tmp_path / name)
        tensor = tensor.bfloat16().float()
    else:
        save_file({"video": tensor}, tmp_path / name)
    first, second = read_video(tmp_path / name)
    assert first.shape == (3, 5, 6, 4)  # B F C H W unless one says otherwise
    assert (first[2, 1, 3], *second.shape) == (pytest.approx(tensor[0, 2, :, 1, 3].numpy()), 3, 5, 6, 4)
    channels_first = read_video(tmp_path / name, "bcfhw")[1]
    assert channels_first.shape == (4, 5, 6, 3)
    assert channels_first[2, 1, 3] == pytest.approx(tensor[1, :, 2, 1, 3].numpy())


def test_tensors_of_fewer_dims(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 4, 5), np.uint8))
    (read,) = read_video(tmp_path / "a.npy")
    assert (read.shape, read.dtype) == ((3, 4, 5, 1), np.uint8)
    np.save(tmp_path / "a.npy", np.zeros((3, 4, 5, 2), np.float64))
    (read,) = read_video(tmp_path / "a.npy", "FHWC")
    assert (read.shape, read.dtype) == ((3, 4, 5, 2), np.float32)


def refused(path, layout=None):
    with pytest.raises(HeadforceError) as caught:
        read_video(path, layout)
    assert caught.value.code == "HF-VIDEO"
    assert str(path) in caught.value.site
    return caught.value


@pytest.mark.parametrize("layout", ["FCH", "FFHW", "CHWB", "FXHW"])
def test_a_layout_that_does_not_fit(tmp_path, layout):
    np.save(tmp_path / "a.npy", np.zeros((2, 3, 4, 5)))
    assert "--layout" in refused(tmp_path / "a.npy", layout).hint


def test_what_is_no_video(tmp_path):
    (tmp_path / "a.mp4").write_text("no film")
    refused(tmp_path / "a.mp4")
    (tmp_path / "a.npy").write_text("no array")
    refused(tmp_path / "a.npy")
    torch.save({"a": torch.ones(3), "b": torch.ones(3)}, tmp_path / "a.pt")
    assert "2 entries" in refused(tmp_path / "a.pt").found
    np.save(tmp_path / "b.npy", np.full((2, 3, 4), np.nan))
    assert "finite" in refused(tmp_path / "b.npy").found
    np.save(tmp_path / "c.npy", np.zeros(3))
    refused(tmp_path / "c.npy")


def test_without_pyav(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(HeadforceError) as caught:
        need_av()
    assert caught.value.code == "HF-VIDEO"
    assert "pip install 'headforce[video]'" in caught.value.hint


def test_pictures():
    latents = np.stack([np.full((1, 1, 4), value, np.float32) for value in (-2.0, 0.0, 2.0, 9.0)])
    shown = pictures(latents, -2.0, 2.0)
    assert shown.shape == (4, 1, 1, 3)
    assert shown[:, 0, 0, 0].tolist() == [0, 128, 255, 255]
    grey = np.full((1, 1, 1, 1), 7, np.uint8)
    assert pictures(grey, 0, 0).tolist() == [[[[7, 7, 7]]]]
    assert pictures(np.ones((1, 1, 1, 3), np.float32), 1.0, 1.0).tolist() == [[[[0, 0, 0]]]]
