"""The intervals of a run keep the confidence that they were made with."""

from metricli.cli import render


def test_a_finished_run_shows_the_confidence_of_its_intervals(fit, tmp_path, capsys):
    run = tmp_path / "run"
    first = fit("validation.bootstrap.confidence=0.8", run_dir=run)
    again = fit("validation.bootstrap.confidence=0.5", resume=run)
    assert (first.confidence, again.confidence) == (0.8, 0.8)
    assert again.to_dict()["intervals"] == first.to_dict()["intervals"]
    render.trained(again)
    assert "  80%" in capsys.readouterr().out
