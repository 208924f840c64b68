"""The live display: a callback over the trainer's own history."""

from types import SimpleNamespace

from transformers import TrainerCallback

from ragfit.training.live import LossCurve, loss_curve


def state_of(total, **more):
    facts = {"is_world_process_zero": True, "max_steps": total, "global_step": 0, "epoch": 0.0, "log_history": [],
             "best_global_step": None, "best_model_checkpoint": None}  # fmt: skip
    return SimpleNamespace(**facts | more)


ARGS = SimpleNamespace(gradient_accumulation_steps=4, load_best_model_at_end=False)


def run(curve, steps, state, args=ARGS, loss=lambda step: 1 / step):
    """As transformers does it: a log goes into the history first."""

    def log(**logs):
        state.log_history.append(logs | {"step": state.global_step})
        curve.on_log(args, state, None, logs)

    curve.on_train_begin(args, state, None)
    for step in range(state.global_step + 1, steps + 1):
        curve.on_substep_end(args, state, None)
        state.global_step, state.epoch = step, 2 * step / state.max_steps
        curve.on_step_end(args, state, None)
        log(loss=loss(step), learning_rate=1e-4, num_tokens=100.0 * step)
        if step % 50 == 0:
            log(eval_loss=2 / step)
    curve.on_train_end(args, state, None)


def test_batches_before_the_first_step():
    lines = []
    curve, state = LossCurve(show=False, write=lines.append), state_of(9)
    curve.on_train_begin(ARGS, state, None)
    curve.on_substep_end(ARGS, state, None)
    assert lines == ["training: 9 steps"]  # nothing more for what takes no time
    curve._next_update = 0.0
    curve.on_substep_end(ARGS, state, None)
    assert lines[1:] == ["first step: batch 2 of 4"] and "batches of the first step" in repr(curve)


def test_few_lines_and_a_curve():
    lines = []
    curve = LossCurve(show=False, write=lines.append)
    run(curve, 1000, state_of(1000))
    assert lines[0] == "training: 1,000 steps"
    assert 10 < len(lines) <= 28 and lines[1].startswith("step 1/1000  loss 1.000  lr 1.0e-04  00:00 elapsed, 00:0")
    assert lines[-1].startswith("done: step 1000/1000 in 00:0") and lines[-1].endswith("loss 0.001, dev loss 0.002")
    html = curve._repr_html_()
    assert "data:image/png" in html and len(html) < 150_000 and "tokens/s" in html and "1000/1000" in html
    figure = curve._figure()
    left, right = figure.axes[0].get_xlim()
    assert left == 0 and right > 1000  # the last point is whole


def test_a_run_that_goes_on_and_is_stopped_and_keeps_its_best_step():
    lines, before = [], [{"step": 2, "loss": 3.5}, {"step": 2, "eval_loss": 3.25}, {"step": 4, "loss": None}]
    curve = LossCurve(show=False, write=lines.append)
    state = state_of(9, global_step=5, log_history=before, best_global_step=2, best_model_checkpoint="checkpoint-2")
    run(curve, 6, state, SimpleNamespace(gradient_accumulation_steps=1, load_best_model_at_end=True))
    assert curve.logged("loss") == [(2, 3.5), (6, 1 / 6)] and lines[0] == "training: 9 steps, going on from step 5"
    kept = "the weights kept are the best ones, of step 2, loss 3.500, dev loss 3.250"
    assert (
        lines[-1].startswith("stopped: step 6/9 in") and lines[-1].endswith(kept) and "stopped" in curve._repr_html_()
    )


def test_one_display_is_updated(monkeypatch):
    import IPython.display

    shown = []
    handle = SimpleNamespace(update=lambda view: shown.append(view._repr_html_()))
    monkeypatch.setattr(IPython.display, "display", lambda view, display_id: shown.append(view._repr_html_()) or handle)
    curve = LossCurve(show=True, write=lambda line: None)
    run(curve, 200, state_of(200))
    assert 2 <= len(shown) <= 4  # the first, the last, and one for each two seconds
    assert "running" in shown[0] and "done" in shown[-1] and "data:image/png" in shown[-1]


def test_a_curve_that_has_not_begun_and_one_as_a_callback():
    assert "not begun" in repr(LossCurve(show=False))
    curve = loss_curve(show=False)
    assert isinstance(curve, TrainerCallback) and isinstance(curve, LossCurve) and callable(curve.on_save)
    curve.on_log(ARGS, state_of(3), None, {"eval_loss": 1.0})  # an evaluation before the run
