"""The training of a VQGAN: its loop, its phases, and checkpoints that change nothing."""

import copy
from functools import partial

import pytest
import torch

from gradbook import patch_gan, vae_training, vq_vae_training, vqgan, vqgan_losses
from gradbook import vqgan_training as training
from gradbook.quantizer_variants import normal_codebook
from gradbook.quantizers import LossCodebook, RestartedCodebook
from gradbook.vqgan_training import Batches, Setting, Training

SETTING = Setting(steps=12, batch=4, rate=1e-2, critic_rate=1e-3)
ERROR = partial(vqgan_losses.squared_loss, variance=0.1)
KINDS = (vqgan.plain_step, vqgan.watched_step, vqgan.game_step)
PLAIN, WATCHED, GAME = (partial(kind, reconstruct=ERROR) for kind in KINDS)
PHASES = {0: PLAIN, 3: WATCHED, 6: GAME}


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=10, seed=1):
    return torch.rand(n, 3, 8, 8, generator=generator(seed), dtype=torch.float32)


def restarted(vectors, generator):
    return RestartedCodebook(normal_codebook(5, vectors.shape[1], generator))


def by_loss(vectors, generator):
    return LossCodebook(normal_codebook(5, vectors.shape[1], generator))


def fresh(phases=PHASES, make=restarted, setting=SETTING, seed=0, count=10, filters=2):
    model = vq_vae_training.started(make, images(), seed, 4, 3, 1)
    critic = patch_gan.PatchGAN(3, filters, 1, generator(seed))
    return Training(model, critic, phases, setting, count, seed)


def same(a, b):
    """All that the future depends on, bit for bit."""
    left, right = (flat(one.state_dict()) for one in (a, b))
    return left.keys() == right.keys() and all(
        torch.equal(left[key], right[key])
        if isinstance(left[key], torch.Tensor)
        else left[key] == right[key]
        for key in left
    )


def flat(state, prefix=()):
    if not isinstance(state, dict):
        return {prefix: state}
    parts = [flat(value, (*prefix, key)) for key, value in state.items()]
    return {key: value for part in parts for key, value in part.items()}


def test_batches_are_those_of_the_other_trainings():
    ours = Batches(10, 3, generator(4))
    theirs = vae_training.minibatches(10, 3, generator(4))
    for _ in range(11):
        assert torch.equal(ours.next(), next(theirs))


@pytest.mark.parametrize("done", [0, 1, 3, 5])
def test_batches_go_on_where_they_were(done):
    one, other = Batches(10, 3, generator(4)), Batches(10, 3, generator(5))
    for _ in range(done):
        one.next()
    state = one.state_dict()
    expected = [one.next() for _ in range(7)]
    other.load_state_dict(state)
    found = [other.next() for _ in range(7)]
    assert all(torch.equal(x, y) for x, y in zip(expected, found, strict=True))
    # The state was a copy: going on did not change it.
    other.load_state_dict(state)
    assert torch.equal(other.next(), expected[0])


def test_without_a_critic_it_is_the_training_of_a_vq_vae(monkeypatch):
    """The same numbers as the other loop, once Adam has the same betas."""
    monkeypatch.setattr(training, "BETAS", (0.9, 0.999))
    x = images()
    exact = {0: partial(vqgan.plain_step, reconstruct=partial(ERROR, variance=x.var().item()))}
    ours = fresh(exact)
    training.fit(ours, x, 12)
    theirs = vq_vae_training.started(restarted, x, 0, 4, 3, 1)
    vq_vae_training.fit(theirs, x, 0, 12, 1e-2, batch=4)
    pairs = zip(ours.players.model.state_dict().values(), theirs.state_dict().values(), strict=True)
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_both_optimizers_are_adam_with_the_betas_of_the_paper():
    one = fresh()
    one.advance(images())
    rates = []
    for optimizer in one.players[2:]:
        assert isinstance(optimizer, torch.optim.Adam)
        (group,) = optimizer.param_groups
        assert group["betas"] == (0.5, 0.9)
        rates.append(group["lr"])
    assert rates == [1e-2 * vq_vae_training.pace(0, 12), 1e-3]


def test_the_rate_falls_at_the_pace_of_the_whole_training():
    rates, setting = {}, SETTING._replace(steps=120)
    one = fresh({0: lambda *_: {}}, setting=setting)
    for step in (49, 99, 110, 119):
        one.step = step
        one.advance(images())
        (group,) = one.players.optimizer.param_groups
        rates[step] = group["lr"]
    # Up in 100 steps, down in 20.
    assert rates == pytest.approx({49: 5e-3, 99: 1e-2, 110: 5e-3, 119: 5e-4}, rel=1e-12)


def test_a_phase_lasts_until_the_next_one():
    seen = []
    phases = {0: lambda *_: seen.append("a"), 5: lambda *_: seen.append("c"), 2: None}
    phases[2] = lambda *_: seen.append("b")
    one = fresh(phases)
    for _ in range(7):
        one.advance(images())
    assert seen == ["a", "a", "b", "b", "b", "c", "c"]
    assert one.step == 7


def test_a_step_sees_the_next_batch_and_the_generator_of_the_quantizer():
    seen = []
    one = fresh({0: lambda players, batch, draws: seen.append((batch, draws))})
    for _ in range(3):
        one.advance(images())
    batches = vae_training.minibatches(10, 4, generator(0))
    for batch, draws in seen:
        assert torch.equal(batch, images()[next(batches)])
        assert draws.initial_seed() == 20_000


@pytest.mark.parametrize("make", [restarted, by_loss])
@pytest.mark.parametrize("stop", [0, 2, 4, 7, 11])
def test_an_interrupted_training_ends_at_the_same_bits(tmp_path, make, stop):
    whole = fresh(make=make)
    training.fit(whole, images(), 12)
    begun = fresh(make=make)
    training.fit(begun, images(), stop)
    training.save(begun, tmp_path / "checkpoint")
    # Another seed: everything must come from the file.
    resumed = fresh(make=make, seed=1)
    training.load(resumed, tmp_path / "checkpoint")
    assert same(resumed, begun)
    training.fit(resumed, images(), 12)
    assert same(resumed, whole)
    assert not same(whole, begun)


def test_two_trainings_can_go_on_from_one_state():
    begun, ends = fresh(), []
    training.fit(begun, images(), 7)
    state = copy.deepcopy(begun.state_dict())
    for _ in range(2):
        one = fresh(seed=1)
        one.load_state_dict(state)
        assert same(one, begun)
        training.fit(one, images(), 12)
        ends.append(one)
    assert same(*ends)


def test_saving_changes_nothing_and_leaves_one_file(tmp_path):
    path, one, other = tmp_path / "checkpoint", fresh(), fresh()
    for until in (3, 8, 12):
        training.fit(one, images(), until)
        training.save(one, path)
        training.fit(other, images(), until)
    assert same(one, other)
    assert list(tmp_path.iterdir()) == [path]


def test_an_older_checkpoint_outlives_a_failed_save(tmp_path, monkeypatch):
    path, one = tmp_path / "checkpoint", fresh()
    training.save(one, path)

    def torn(state, file):
        file.write_bytes(b"torn")
        raise OSError("no space left")

    training.fit(one, images(), 3)
    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", torn)
        with pytest.raises(OSError, match="no space"):
            training.save(one, path)
    found = fresh(seed=1)
    training.load(found, path)
    assert same(found, fresh())


def test_a_checkpoint_can_run_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    torch.save({"players": Evil()}, tmp_path / "evil")
    with pytest.raises(Exception, match="[Ww]eights.only"):
        training.load(fresh(), tmp_path / "evil")


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    training.save(fresh(), tmp_path / "checkpoint")
    for other, message in (
        (fresh(setting=SETTING._replace(rate=1.0)), "^state: is of .*, not .*"),
        (fresh(seed=1, count=9), "^state: is of 10 images, not 9"),
    ):
        before = copy.deepcopy(other)
        with pytest.raises(ValueError, match=message):
            training.load(other, tmp_path / "checkpoint")
        assert same(other, before)


def test_networks_that_do_not_fit_leave_the_batches_the_draws_and_the_step(tmp_path):
    begun = fresh()
    training.fit(begun, images(), 5)
    training.save(begun, tmp_path / "checkpoint")
    other, kept = fresh(filters=3), ("batches", "draws", "step")
    before = copy.deepcopy({name: other.state_dict()[name] for name in kept})
    with pytest.raises(RuntimeError, match="size mismatch"):
        training.load(other, tmp_path / "checkpoint")
    found, expected = (flat(state) for state in (other.state_dict(), before))
    for key, value in expected.items():
        equal = torch.equal if isinstance(value, torch.Tensor) else int.__eq__
        assert equal(found[key], value), key


def test_a_checkpoint_goes_on_in_other_phases(tmp_path):
    begun = fresh({0: PLAIN})
    training.fit(begun, images(), 5)
    training.save(begun, tmp_path / "checkpoint")
    other = fresh({0: GAME}, seed=1)
    training.load(other, tmp_path / "checkpoint")
    assert same(other, begun)
    assert "weight" in other.advance(images())


def test_where_a_fit_is_measured_and_traced_changes_nothing():
    found = []
    for points, every in (((), 10), ((0, 5, 12), 1), ((3,), 4)):
        one = fresh()
        measure = lambda model: vq_vae_training.measures(model, images(3, seed=2))  # noqa: E731
        course = training.fit(one, images(), 12, points, measure, every)
        assert len(course.values) == len(points)
        assert course.seconds > 0
        found.append(one)
    assert all(same(found[0], one) for one in found)


def test_a_trace_has_the_steps_at_which_a_name_was_seen():
    one = fresh()
    course = training.fit(one, images(), 8, every=2)
    assert course.trace["reconstruction"]["steps"] == [0, 2, 4, 6]
    assert course.trace["real"]["steps"] == [4, 6]
    assert course.trace["weight"]["steps"] == [6]
    other, rows = fresh(), []
    for _ in range(8):
        rows.append(other.advance(images()))
    for name, column in course.trace.items():
        assert column["values"] == [rows[step][name] for step in column["steps"]]
    later = training.fit(one, images(), 12, every=2)
    assert later.trace["weight"]["steps"] == [8, 10]


def test_every_tenth_step_is_traced_by_default():
    one = fresh({0: lambda *_: {"one": 1.0}}, setting=SETTING._replace(steps=25))
    assert training.fit(one, images(), 25).trace == {
        "one": {"steps": [0, 10, 20], "values": [1.0] * 3}
    }


def test_the_seconds_are_those_of_a_step_of_this_fit_without_measures(monkeypatch):
    now = [0.0]

    def takes(seconds):
        now[0] += seconds
        return {}

    monkeypatch.setattr(training.time, "perf_counter", lambda: now[0])
    one = fresh({0: lambda *_: takes(2), 4: lambda *_: takes(3)})
    measure = lambda model: takes(100)  # noqa: E731
    assert training.fit(one, images(), 3, (0, 2, 3), measure).seconds == 2
    assert training.fit(one, images(), 7, (3, 7), measure).seconds == 11 / 4
    assert training.fit(one, images(), 7, (7,), measure).seconds == 0


def test_a_fit_measures_in_evaluation_mode_and_in_order():
    seen = []

    def measure(model):
        seen.append((model.training, torch.is_grad_enabled(), one.step))
        return one.step

    one = fresh()
    assert training.fit(one, images(), 7, (6, 0, 2), measure).values == [0, 2, 6]
    assert seen == [(False, False, step) for step in (0, 2, 6)]
    assert one.players.model.training
    assert one.step == 7


def test_a_fit_of_no_steps_only_measures():
    one = fresh()
    course = training.fit(one, images(), 0, (0,), lambda model: 7.0)
    assert course[:2] == ([7.0], {})
    assert same(one, fresh())


BAD = {
    "no_phase": (lambda: fresh({}), "phases"),
    "late_phase": (lambda: fresh({1: PLAIN}), "phases"),
    "early_phase": (lambda: fresh({-1: PLAIN, 0: GAME}), "phases"),
    "batch": (lambda: fresh(setting=SETTING._replace(batch=11)), "size"),
    "no_batch": (lambda: Batches(10, 0, generator()), "size"),
    "too_long": (lambda: training.fit(fresh(), images(), 13), "until"),
    "point": (lambda: training.fit(fresh(), images(), 3, (4,)), "points"),
    "negative_point": (lambda: training.fit(fresh(), images(), 3, (-1,)), "points"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name):
    call, argument = BAD[name]
    with pytest.raises(ValueError, match=f"^{argument}: "):
        call()


def test_a_fit_does_not_go_back():
    one = fresh()
    training.fit(one, images(), 5)
    with pytest.raises(ValueError, match="^until: must be from 5 to 12, got 4"):
        training.fit(one, images(), 4)
    with pytest.raises(ValueError, match="^points: must be from 5 to 7"):
        training.fit(one, images(), 7, (4, 6))
