"""The examples with autoencoders run and show what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_examples import load

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")


def run(name: str, folder: Path, pictures: set[str]) -> dict[str, Any]:
    """Run an example, check that it saves its pictures and no more, and return its results."""
    results: dict[str, Any] = load(name).main(["--pictures", str(folder / "new"), "--quick"])
    saved = list((folder / "new").iterdir())
    assert {path.name for path in saved} == {f"{picture}.png" for picture in pictures}
    for path in saved:
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG\r\n\x1a\n")
        assert len(content) > 5000  # more than empty axes
    return results


def test_sunspots_autoencoder(tmp_path: Path) -> None:
    pytest.importorskip("statsmodels")
    results = run("sunspots_autoencoder", tmp_path, {"sunspots_autoencoder", "sunspots_codes"})
    assert results["counts"] == (2, 3, 4)
    # The errors of the components are facts of the data.
    np.testing.assert_allclose(results["components"], [22.7, 19.8, 16.6], atol=0.1)
    assert np.all(np.less(results["network"], results["components"]))
    assert np.mean(results["network"]) < 0.95 * np.mean(results["components"])


class TestImageCompression:
    def test_quick(self, tmp_path: Path) -> None:
        pictures = {"image_compression", "image_compression_rates"}
        results = run("image_compression", tmp_path, pictures)
        few = np.array(results["budgets"]) <= 64
        mine, linear, shared = (
            np.array(results[name]) for name in ("autoencoder", "components", "bits shared out")
        )
        assert few.sum() == 7
        assert np.all(mine[few] < 0.95 * np.minimum(linear, shared)[few])
        assert shared[-1] < 0.5 * mine[-1]  # where many bits are left, it is the other way

    def test_rounding(self) -> None:
        rounded = load("image_compression").rounded
        known = np.random.default_rng(0).uniform(-1, 3, (20000, 2))
        for bits in (1, 2, 5):
            made = rounded(known, known, bits)
            assert all(len(np.unique(column)) == 2**bits for column in made.T)
            # No number is moved by more than half a step, but for those outside the quantiles.
            step = 4 * 0.99 / (2**bits - 1)
            assert np.abs(made - known).max() < 0.55 * step + 0.03
        np.testing.assert_allclose(rounded(known, known, 0), 1, atol=0.05)

    def test_best_within_a_budget(self) -> None:
        example = load("image_compression")

        class Coder:
            def __init__(self, k: int) -> None:
                self.errors = {bits: (1 / k + 4.0**-bits, 0.0) for bits in example.BITS}

        coders = {k: Coder(k) for k in (2, 4, 8)}
        assert example.choose(coders, 8) == (4, 2)  # 1/4 + 1/16 is less than 1/2 + 1/256
        assert example.choose(coders, 16) == (8, 2)  # and 1/8 + 1/16 than 1/4 + 1/256
        assert example.choose(coders, 15) == (4, 3)
        assert example.choose(coders, 100) == (8, 8)


def test_denoise_digits(tmp_path: Path) -> None:
    results = run("denoise_digits", tmp_path, {"denoise_digits", "denoise_digits_features"})
    for kind, noise in (("gaussian", 0.09), ("salt_and_pepper", 0.127)):
        errors = results["errors"][kind]
        assert errors["noisy"] == pytest.approx(noise, abs=0.003)
        assert errors["denoised"] < 0.4 * errors["plain"]
        assert errors["denoised"] < 0.85 * errors["components"]  # the best number in hindsight
    for rho, rate in results["rates"].items():
        assert rate == pytest.approx(rho, abs=0.02)
    free, tight = (results["jacobians"][strength] for strength in (0.0, 0.003))
    assert tight["norm"] < 0.7 * free["norm"]
    assert tight["error"] < 1.1 * free["error"]


def test_novel_digits(tmp_path: Path) -> None:
    results = run("novel_digits", tmp_path, {"novel_digits", "novel_digits_scores"})
    ours, theirs = np.array(results["autoencoder"]), np.array(results["components"])
    assert ours.mean() >= 0.95
    assert ours.mean() > theirs.mean() + 0.05
    assert len(ours) == 10
    assert ours.min() > 0.8
    assert np.mean(results["found"]) > 0.8 > 0.2 > np.mean(results["false alarms"])


def test_handwriting_vae(tmp_path: Path) -> None:
    names = ("elbo", "samples", "grid", "latent", "maps")
    results = run("handwriting_vae", tmp_path, {f"handwriting_{name}" for name in names})
    for early, late in results["elbo"].values():
        assert late > early + 0.3
    top = results["top"]
    for k in (2, 8):
        assert top["unseen digits"] > top[f"written, code of {k}"] >= 0.8
    assert top["normal distribution"] < 0.75
    maps = results["maps"]
    assert maps["variational"] > maps["principal components"] + 0.15
    assert maps["pulled to t-SNE"] > maps["principal components"] + 0.15
