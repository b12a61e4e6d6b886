"""The speed tests of section 5: what is kept, what is left out, what the pages say. No clocks."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from pytorchdia import InputError
from pytorchdia.experiments import clock, layers, rounds, speed, speed_page
from pytorchdia.experiments.rounds import Contender, Point, Timing, run_rounds
from pytorchdia.experiments.scaling import power_law, spread_line, summarise_timings
from pytorchdia.experiments.scenes import _render, ccd_scene, emccd_scene
from pytorchdia.simulate import draw_stars, render_gaussian
from pytorchdia.solvers import Newton

ONE = Contender("one", "cpu", (2.0, 4.0))


def done():
    return {"status": "CONVERGED", "evaluations": 3}


def timing(size, seconds, method="one", number=0, **others):
    row = Timing("ccd", size, 19, method, "cpu", number, seconds, "", "CONVERGED", 1.0, 2.0, 50.0)
    return replace(row, **others)


@pytest.fixture
def ticks(monkeypatch):
    """A clock of our own: each run takes ``ticks[0]`` seconds and calls the job."""
    length = [0.1]

    def clocked(function):
        def run():
            function()
            return length[0]

        return run

    monkeypatch.setattr(rounds, "clocked", clocked)
    return length


def test_rounds_are_files_and_only_missing_ones_are_run(tmp_path, ticks):
    calls = []

    def make(point, contender, number):
        calls.append((point.image, number))
        return done

    points = [Point("ccd", n, 19, 3, 10.0) for n in (20, 30)]
    warmed = []
    first = run_rounds(tmp_path, points, [ONE], make, warmed.append, pause=0.0)
    assert calls == [(n, i) for n in (20, 30) for i in range(3)]
    assert warmed == [ONE]
    names = sorted(p.name for p in (tmp_path / "timings").iterdir())
    assert names == [f"ccd-00{n}-19-00{i}.csv" for n in (20, 30) for i in range(3)]
    (tmp_path / "timings" / names[4]).unlink()
    calls.clear()
    again = run_rounds(tmp_path, points, [ONE], make, pause=0.0)
    assert calls == [(30, 1)]
    assert [t.seconds for t in again] == [t.seconds for t in first] == [0.1] * 6
    assert again[0].evaluations == 3
    assert math.isnan(again[0].snr)


def test_who_would_take_too_long_is_left_out_with_a_reason(tmp_path, ticks):
    points = [Point("ccd", 20, m, 4, 10.0) for m in (5, 15)]
    ticks[0] = 2.0  # at the first point 3 rounds of 2 s and then a fourth; 3^4 times as long next
    found = run_rounds(tmp_path, points, [ONE], lambda *_: done, pause=0.0)
    assert [t.seconds for t in found[:4]] == [2.0] * 4
    assert [t.reason for t in found[4:]] == ["expected to take 162 s"]
    summary = summarise_timings(found)[-1]
    assert summary.n == 0
    assert math.isnan(summary.median)
    ticks[0] = 4.0  # three rounds are a median, a fourth would be beyond the budget
    found = run_rounds(tmp_path / "b", points[:1], [ONE], lambda *_: done, pause=0.0)
    assert len(found) == 3


def test_a_reason_of_the_maker_is_kept_and_not_asked_for_again(tmp_path, ticks):
    asked = []

    def make(point, contender, number):
        asked.append(number)
        return "no room"

    found = run_rounds(tmp_path, [Point("x", 20, 5, 3, 1.0)], [ONE], make, pause=0.0)
    assert asked == [0]
    assert [t.reason for t in found] == ["no room"]


def test_a_fit_that_goes_on_for_too_long_is_stopped(tmp_path, ticks):
    def make(point, contender, number):
        def job():
            if number == 2:
                raise rounds.StoppedError
            return done()

        return job

    found = run_rounds(tmp_path, [Point("ccd", 20, 5, 5, 12.0)], [ONE], make, pause=0.0)
    assert [t.reason for t in found] == ["", "", "stopped after 12 s"]
    (summary,) = summarise_timings(found)
    assert (summary.n, summary.reason) == (2, "stopped after 12 s")
    assert "after 2 rounds stopped" in spread_line(summary)
    with pytest.raises(rounds.StoppedError):
        speed._fit(ccd_scene(40), 5, Contender("Newton", "cpu", (2, 1)), -1.0)


def test_timings_of_another_machine_are_refused(tmp_path, ticks):
    points = [Point("ccd", 20, 5, 1, 1.0)]
    run_rounds(tmp_path, points, [ONE], lambda *_: done, pause=0.0)
    path = tmp_path / "machine.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"threads": 99}))
    with pytest.raises(InputError, match=r"threads 99 \(now"):
        run_rounds(tmp_path, points, [ONE], lambda *_: done, pause=0.0)


def test_the_second_run_counts_unless_the_first_was_long():
    times = iter([5.0, 1.0, 7.0])
    assert clock.settled(lambda: next(times), 0.0) == 1.0
    assert clock.settled(lambda: next(times), 0.0, enough=6.0) == 7.0
    turns = {"a": lambda: 1.0, "out": lambda: None}
    assert clock.take_turns(turns, 2, 0.0) == {"a": [1.0, 1.0]}


def test_powers_of_made_up_times():
    sizes = np.array([100.0, 200.0, 400.0, 800.0])
    exact = power_law(sizes, 3e-5 * sizes**2)
    assert exact.value == pytest.approx(2.0)
    assert exact.error == pytest.approx(0.0, abs=1e-9)
    rng = np.random.default_rng(1)
    slopes = []
    for _ in range(400):  # the standard error is that of the scatter
        fit = power_law(sizes, sizes**1.5 * np.exp(0.1 * rng.standard_normal(4)))
        slopes.append((fit.value, fit.error))
    values, errors = np.array(slopes).T
    assert values.mean() == pytest.approx(1.5, abs=0.02)
    assert np.sqrt((errors**2).mean()) == pytest.approx(values.std(), rel=0.15)
    assert math.isnan(power_law(sizes[:2], sizes[:2]).error)
    assert "two points" in str(power_law(sizes[:2], sizes[:2]))
    assert power_law([], []).n == 0


def test_medians_and_quartiles():
    (s,) = summarise_timings([timing(50, t) for t in (1.0, 2.0, 3.0, 4.0, 100.0)])
    assert (s.median, s.q25, s.q75, s.n) == (3.0, 2.0, 4.0, 5)
    failed = [timing(50, 1.0), timing(50, 1.0, status="MAX_STEPS")]
    assert summarise_timings(failed)[0].not_converged == 1


def test_blocks_of_the_field_are_the_whole_field():
    stars = draw_stars(np.random.default_rng(2), (90, 90), 2.0)
    whole = render_gaussian(stars, (90, 90), 1.5)
    np.testing.assert_allclose(_render(stars, 90, 1.5, 40), whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scene", [ccd_scene(70), emccd_scene(70, 2)], ids=["ccd", "emccd"])
def test_scenes_can_be_fitted(scene):
    assert scene.phi_k > 0
    assert 3 < scene.snr < 1000
    objective = scene.objective(15, "cpu")
    solution = Newton().solve(objective)
    assert solution.status.ok
    residual = (scene.target - objective.model.mv(solution.theta))[objective.use]
    variance = scene.noise.variance(objective.model.mv(solution.theta))[objective.use]
    assert 0.5 < float((residual**2 / variance).median()) / 0.455 < 2.0  # of chi-square with 1 d.f.


def test_targets_differ_and_smaller_images_are_crops():
    assert emccd_scene(60, 0).phi_i != emccd_scene(60, 1).phi_i
    widths = [emccd_scene(30, i).phi_i for i in range(4)]
    assert all(2.18 <= w <= 4.18 for w in widths)


def test_a_speed_run_leaves_table_page_and_picture(tmp_path, ticks, monkeypatch):
    few = {name: speed.METHODS[name] for name in ("Newton", "B08")}
    monkeypatch.setattr(speed, "METHODS", few)
    points = [Point("ccd", n, 5, 3, 9.0) for n in (24, 32, 40)]
    points += [Point("emccd", 32, 5, 8, 9.0)]  # eight targets are enough for Figure 7
    seen = []
    found = speed.time_points(tmp_path, "speed-image", points, lambda d, t: seen.append(t), 0.0)
    assert {t.method for t in found} == {"Newton", "B08"}
    assert len({t.phi_i for t in found if t.scene == "emccd"}) == 8  # a target for each round
    assert set(seen) == {17}
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"machine.json", "timings", "speed-image.csv", "speed-image.md",
                     "speed-image.png"}  # fmt: skip
    page = (tmp_path / "speed-image.md").read_text()
    assert f"{torch.get_num_threads()} threads of torch" in page
    assert "0.00 ± 0.00 (3 points)" in page  # the clock of this test does not feel the size
    assert "B08 over Newton" in page
    assert "Figure 7" in page


def test_every_method_of_the_paper_is_what_it_says():
    scene, robust = ccd_scene(60), emccd_scene(60)
    assert speed._solver("B08", scene).k_sigma is None
    assert speed._solver("B08", robust).k_sigma == 5.0
    assert speed._solver("B08", robust).iterations == 3
    assert speed._solver("Adam, L-BFGS; Gaussian start", scene).start_sigma == 1.5
    assert speed._solver("Adam, L-BFGS; layer", scene).layer is not None
    assert speed._solver("Adam, L-BFGS; flat start", scene).layer is None


def test_the_picture_of_no_finished_fit_is_still_a_picture(tmp_path):
    speed_page.draw_speed([timing(50, math.nan, reason="too long")], tmp_path / "x.png", "image")
    assert (tmp_path / "x.png").stat().st_size > 1000


@pytest.mark.skipif(torch.cuda.is_available(), reason="the page of a machine without CUDA")
def test_a_cpu_page_says_that_cudnn_was_not_measured(tmp_path, ticks):
    points = [Point(w, 40, m, 2, 5.0) for w in ("model", "gradient") for m in (3, 5)]
    found = layers.time_layers(tmp_path, points, pause=0.0)
    assert {t.method for t in found} == {"layer, oneDNN on", "layer, oneDNN off", layers.TILES}
    page = (tmp_path / "cudnn.md").read_text()
    assert "oneDNN on a CPU, on and off; not cuDNN" in page
    assert (tmp_path / "cudnn.png").exists()
    assert torch.backends.mkldnn.enabled == torch.backends.mkldnn.is_available()


def test_layer_and_tiles_compute_the_same():
    scene, point = ccd_scene(60), Point("model", 60, 7, 1, 1.0)
    objective = scene.objective(7, "cpu")
    theta = layers.gaussian_start(objective, scene.phi_k).float()
    direct, tiles = objective.model.mv_direct(theta), objective.model.mv(theta)
    assert torch.allclose(direct, tiles, atol=1e-2)
    outcome = layers._product(scene, point, Contender("layer, oneDNN off", "cpu", (2, 2)))()
    assert outcome["status"] == "CONVERGED"


def test_a_layer_that_would_unfold_too_much_is_left_out():
    big = Point("model", 1000, 47, 1, 1.0)
    reason = layers._job(big, Contender("layer, oneDNN off", "cpu", (2, 2)), 0)
    assert reason == "would unfold the image to 7.5 GB"


def test_commands(run_cli, tmp_path, monkeypatch):
    from pytorchdia.cli import experiment

    calls = []
    for name in ("run_speed_image", "run_speed_kernel", "run_layers"):
        monkeypatch.setattr(experiment, name, lambda *a, name=name: calls.append((name, *a[:2])))
    for name in ("speed-image", "speed-kernel", "cudnn"):
        assert run_cli("experiment", name, tmp_path, "--quick").code == 0
    assert calls == [(n, tmp_path, True) for n in
                     ("run_speed_image", "run_speed_kernel", "run_layers")]  # fmt: skip
    refused = run_cli("experiment", "cudnn", tmp_path, "--workers", 2)
    assert refused.code == 2
    assert "--workers" in refused.err
