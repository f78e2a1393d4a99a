"""The examples of forecasting, tagging and one-to-many networks."""

from __future__ import annotations

import keyword
from pathlib import Path

import numpy as np
import pytest
from run_examples import load, run

pytest.importorskip("matplotlib")


class TestSunspotsForecast:
    def test_quick(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        pytest.importorskip("statsmodels")
        results = run("sunspots_forecast", tmp_path, "--quick")
        # The naive errors are facts of the data.
        assert results["last value"] == pytest.approx(77.4, abs=0.1)
        assert results["11 years before"] == pytest.approx(38.4, abs=0.1)
        assert results["autoregression"] == pytest.approx(29.6, abs=0.1)
        assert results["GRU, one of them"] < 0.9 * results["11 years before"]
        printed = capsys.readouterr().out
        assert f"{results['better']} of 2 networks are better" in printed
        beaten = results["GRU, one of them"] < results["autoregression"]
        assert ("Not beaten by a network on average: none." in printed) == beaten

    def test_autoregression_continues_a_recursion(self):
        # Lines and sines obey a recursion of four steps, so the forecast is exact.
        year = np.arange(80.0)
        series = 3 + 0.1 * year + np.sin(2 * np.pi * year / 11)
        forecast = load("sunspots_forecast").autoregress(series[:60], 4, series[np.newaxis, 40:70])
        np.testing.assert_allclose(forecast, [series[70:75]], rtol=1e-8)

    def test_forecast_scales_with_its_window(self):
        # float64 windows that are multiples by a power of two give the same input.
        example = load("sunspots_forecast")
        generator = np.random.default_rng(0)
        known, newer = (
            (generator.uniform(1, 9, (n, example.WINDOW)), generator.uniform(1, 9, (n, 5)))
            for n in (12, 4)
        )
        model = example.train(known, newer, 2, 0)
        forecast = example.predict(model, newer[0])
        assert forecast.shape == (4, 5)
        np.testing.assert_array_equal(example.predict(model, 2 * newer[0]), 2 * forecast)


class TestTagging:
    def test_quick(self, tmp_path: Path) -> None:
        results = run("tagging", tmp_path, "--quick")
        assert results["network"] > results["baseline"] + 0.05
        assert 0.4 < results["baseline"] < 0.8

    def test_kinds(self):
        example = load("tagging")
        source, kinds = example.read_module("heapq")
        assert kinds.shape == (len(source),)

        def kind_of(text: str) -> set[str]:
            start = source.index(text)
            return {example.KINDS[kind] for kind in kinds[start : start + len(text)]}

        assert kind_of('"""Heap queue algorithm') == {"string"}
        assert kind_of("heappush") == {"string"}  # in the docstring
        assert kind_of("# raises appropriate IndexError if heap is empty") == {"comment"}
        start = source.index("def heappush(heap, item):")
        names = [example.KINDS[kind] for kind in kinds[start : start + 25]]
        expected = ["keyword"] * 3 + ["space"] + ["name"] * 8 + ["operator"] + ["name"] * 4
        assert names == [*expected, "operator", "space", *["name"] * 4, "operator", "operator"]

    def test_pieces_are_the_modules(self):
        example = load("tagging")
        modules = ["heapq", "mailbox"]
        texts, kinds = example.cut(modules, 0)
        sources = [example.read_module(module) for module in modules]
        assert "".join(texts) == "".join(source for source, _ in sources)
        np.testing.assert_array_equal(
            np.concatenate(kinds), np.concatenate([k for _, k in sources])
        )
        assert all(1 <= text.count("\n") <= 12 for text in texts)
        assert len({len(text) for text in texts}) > 50
        words = "".join(np.where(np.concatenate(kinds) == 0, [*"".join(texts)], " ")).split()
        assert words
        assert all(map(keyword.iskeyword, words))

    def test_other_modules_are_tested(self):
        example = load("tagging")
        assert not set(example.TRAIN.split()) & set(example.TEST.split())


class TestOneToMany:
    def test_quick(self, tmp_path: Path) -> None:
        pytest.importorskip("sklearn")
        results = run("one_to_many", tmp_path, "--quick")
        errors = {name: error for name, (error, _) in results.items()}
        assert errors["class means"] < errors["network"] < 0.9 * errors["mean of all"]
        assert results["network"][1] < 0.2

    def test_compare(self):
        pytest.importorskip("sklearn")
        templates = np.arange(10.0)[:, np.newaxis, np.newaxis] * np.ones((8, 8))
        images = templates[[3, 4]] + 0.6  # nearer to 4 and 5
        example = load("one_to_many")
        assert example.compare(images, np.array([3, 4]), templates) == pytest.approx((0.6, 1))
        assert example.compare(images, np.array([4, 5]), templates) == pytest.approx((0.4, 0))
