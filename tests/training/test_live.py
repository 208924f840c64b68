"""The live display: a callback over the trainer's own history."""

from types import SimpleNamespace

import IPython.display

from ragfit.training.live import LossCurve


def run(curve, steps, total, first=0, history=(), best=None):
    """As transformers does it: a log goes into the history first."""
    best_checkpoint = best and f"checkpoint-{best}"
    state = SimpleNamespace(is_world_process_zero=True, max_steps=total, global_step=first, log_history=list(history),
                            best_global_step=best, best_model_checkpoint=best_checkpoint)  # fmt: skip
    args = SimpleNamespace(load_best_model_at_end=best is not None)

    def log(**logs):
        state.log_history.append(logs | {"step": state.global_step})
        curve.on_log(args, state, None, logs=logs)

    curve.on_log(args, state, None, logs={"eval_loss": 1.0})  # an evaluation before the run
    curve.on_train_begin(args, state, None)
    for step in range(first + 1, steps + 1):
        state.global_step = step
        curve.on_step_end(args, state, None)
        log(loss=1 / step, learning_rate=1e-4, num_tokens=100.0 * step)
        if step % 50 == 0:
            log(eval_loss=2 / step)
    curve.on_train_end(args, state, None)
    return curve


def test_lines_and_a_curve(capsys):
    curve = run(LossCurve(show=False), 100, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["training: 100 steps from step 0 on", "step 1/100  loss 1, learning rate 0.0001"]
    assert len(lines) == 104 and "step 50/100  dev loss 0.04" in lines
    assert lines[-1].startswith("done: step 100/100 in 00:0") and lines[-1].endswith("loss 0.010, dev loss 0.020")
    html = curve._repr_html_()
    assert "data:image/png" in html and len(html) < 150_000 and "tokens/s" in html and "100/100" in html
    assert [tokens for _, tokens in curve._tokens] == [100, 10_000]  # the dev loss, logged last, brings none
    assert curve._figure().axes[0].get_xlim() == (0, 102)  # the last point is whole


def test_a_run_that_goes_on_and_is_stopped_and_keeps_its_best_step(capsys):
    before = [{"step": 2, "loss": 3.5}, {"step": 2, "eval_loss": 3.25}, {"step": 4, "loss": None}]
    curve = run(LossCurve(show=False), 6, 9, first=5, history=before, best=2)
    lines = capsys.readouterr().err.splitlines()
    assert curve.logged("loss") == [(2, 3.5), (6, 1 / 6)] and lines[0] == "training: 4 steps from step 5 on"
    assert lines[-1].startswith("stopped: step 6/9 in") and "stopped" in curve._repr_html_()
    assert lines[-1].endswith("the weights kept are the best ones, of step 2, loss 3.500, dev loss 3.250")


def test_one_display_is_updated(monkeypatch):
    shown = []
    handle = SimpleNamespace(update=lambda view: shown.append(view._repr_html_()))
    monkeypatch.setattr(IPython.display, "display", lambda display_id: handle)
    assert "not begun" in repr(LossCurve(show=False))
    run(LossCurve(show=True), 200, 200)
    assert 2 <= len(shown) <= 4  # the first, the last, and one for each two seconds
    assert "running" in shown[0] and "done" in shown[-1] and "data:image/png" in shown[-1]
