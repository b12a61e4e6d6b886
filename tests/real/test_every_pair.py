"""Every real pair runs through the command line as it is, and says what is wrong with it."""

import numpy as np
import pytest
from astropy.io import fits

SAAO = "saao_bulge_series/registered/AKB13475I{}_reg.fits.fz"
EPOCHS = ["0007", "0026", "0043", "0056", "0070", "0097", "0103", "0116", "0129", "0167", "0180"]
DECAM = "decam_stacks/{}.fits.fz"
ZTF = [
    "ZTF_ZTF19abzrhgq_1127107111615015007",
    "ZTF_ZTF20aajcdad_1127495406315015005",
    "ZTF_ZTF17aadcvhq_2475433850015010009",
]
MOVING = "ZTF_ZTF23abjjncy_2475433850315015003"
SATURATED = "PGIR_PGIR19aadghm_114351418"

PAIRS = {
    **{f"saao {e}": (SAAO.format(e), SAAO.format("0020")) for e in EPOCHS},
    **{
        f"decam {o}{e}": (DECAM.format(f"DEC-OBS{o}{e}.mini"), DECAM.format(f"DEC-OBS{o}a.mini"))
        for o in ("04", "18")
        for e in "bcde"
    },
    "decam stacks": (DECAM.format("Stack-DEC-OBS04"), DECAM.format("Stack-DEC-OBS18")),
    "eso": tuple(f"eso085_pair/aligned_eso085-030-{n}.fits.fz" for n in ("005", "004")),
    **{
        name.split("_")[1]: tuple(
            f"alert_triplets/{name}.fits[{h}]" for h in ("SCIENCE", "TEMPLATE")
        )
        for name in (*ZTF, MOVING, SATURATED)
    },
}
BAD = {MOVING.split("_")[1], SATURATED.split("_")[1]}


def codes(run):
    return {f["code"] for f in run.outcome["findings"]}


@pytest.mark.parametrize("pair", PAIRS)
def test_pair_runs_without_hand_tuning(subtract_files, pair):
    run = subtract_files(*PAIRS[pair])
    assert run.code == 0
    assert run.outcome["status"] == "CONVERGED"
    with fits.open(run.path) as hdus:
        assert np.isfinite(hdus[0].data).all()
        has_data = np.isfinite(hdus["VARIANCE"].data)
        assert (hdus["VARIANCE"].data[has_data] > 0).all()
        assert (hdus["MASK"].data[~has_data] != 0).all()
        assert hdus["KERNEL"].data.sum() == pytest.approx(hdus[0].header["DIAP"])
    if pair not in BAD:
        assert run.outcome["scale"] > 10 * run.outcome["scale_error"]


@pytest.mark.parametrize("pair", PAIRS)
def test_one_fit_takes_at_most_eight_steps(subtract_files, pair):
    run = subtract_files(*PAIRS[pair], "--prior", "none", "--no-covariance")
    assert run.outcome["status"] == "CONVERGED"
    assert run.outcome["diagnostics"]["steps"] <= 8


@pytest.mark.parametrize("pair", [p for p in PAIRS if p.startswith("decam")])
def test_decam_scale_is_one_as_the_source_calibrated_it(subtract_files, pair):
    # All exposures are 330 s through one filter; the source's matching kernels sum to 0.97-1.02.
    assert subtract_files(*PAIRS[pair]).outcome["scale"] == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("pair", ["decam 04b", "decam 04e", "decam 18c", "eso"])
def test_a_robust_loss_finds_the_same_scale(subtract_files, pair):
    # Few bright stars, and nothing that no kernel can do at them counts as an outlier.
    robust = subtract_files(*PAIRS[pair], "--likelihood", "huber")
    assert robust.outcome["scale"] == pytest.approx(1.0, abs=0.05)


def test_saturated_blends_do_not_stop_a_robust_fit(subtract_files):
    robust = subtract_files(*PAIRS[SATURATED.split("_")[1]], "--likelihood", "huber")
    assert robust.code == 0
    assert robust.outcome["status"] == "CONVERGED"


def test_eso_frames_of_equal_exposure_and_seeing_have_scale_one(subtract_files):
    assert subtract_files(*PAIRS["eso"]).outcome["scale"] == pytest.approx(1.0, abs=0.02)


def test_an_empty_template_is_called_out(subtract_files):
    # A moving object on an empty template: nothing to learn a kernel from.
    run = subtract_files(*PAIRS[MOVING.split("_")[1]])
    assert "scale-uncertain" in codes(run)


def test_saturated_blends_are_called_out(subtract_files):
    assert "residual-scale" in codes(subtract_files(*PAIRS[SATURATED.split("_")[1]]))


def test_missing_gain_and_subtracted_sky_are_called_out(subtract_files):
    assert "noise-estimated" in codes(subtract_files(*PAIRS["eso"]))
    assert "sky-restored" in codes(subtract_files(*PAIRS["decam 04b"]))
    assert "sky-too-quiet" in codes(subtract_files(*PAIRS["saao 0007"]))


@pytest.mark.parametrize("epoch", ["0007", "0026"])
def test_residuals_on_clean_sky_have_unit_scale_without_resampling(subtract_files, epoch):
    # The raw frames lie within a few pixels of frame 20 without rotation: the kernel does the
    # shift, nothing is interpolated, and gain and read noise are those of the header.
    raw = "saao_bulge_series/AKB13475I{}.fits.fz"
    run = subtract_files(raw.format(epoch), raw.format("0020"), "--kernel-size", "23")
    assert 0.9 < run.outcome["diagnostics"]["residual_scale"] < 1.1
    # The registered frame of the same epoch was interpolated: its noise is correlated and low.
    resampled = subtract_files(*PAIRS[f"saao {epoch}"])
    assert resampled.outcome["diagnostics"]["residual_scale"] < 0.9
    assert "sky-too-quiet" in codes(resampled)
