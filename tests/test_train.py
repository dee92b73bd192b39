"""Training: what `fit` keeps, when it stops, what it trains on, and what it says when it cannot go on."""

import dataclasses
import threading

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import pytest

from flowknife import train
from flowknife.bijections import LU, ActNorm, Chain, Channels, Coupling, Elementwise, Orthogonal, ShiftScale
from flowknife.errors import InputError, TrainingError
from flowknife.inn import INN, Block
from flowknife.laws import Given, Noise, Pad
from flowknife.objectives import log_probs
from flowknife.train import OPTIMISERS, FitResult, Training, _steps
from tests.catalogue import MLP


def fit(*args, **settings):
    return train.fit(*args, show_progress=False, **{"key": 0, **settings})


EVERY_ROW = Training(validation=0)  # none is held out


def affine(dim=2):
    """The smallest flow there is: its best fit is the mean and the standard deviation of the data."""
    return INN([Block("x", dim)], [Block("z", dim)], Elementwise(ShiftScale(), dim))


def coupling(bijection=None):
    flow = Coupling(Channels(2), ShiftScale(), MLP, key=0)
    return INN([Block("x", 2)], [Block("z", 2)], flow if bijection is None else bijection)


def rows(count=200, dim=2, seed=0):
    return np.random.default_rng(seed).normal(1.5, 0.5, (count, dim)).astype(np.float32)


def total(model, batch, key):
    """An objective whose gradient is one for every parameter."""
    return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array)))


def spied(seen):
    """The negative log-likelihood, which notes every batch it sees."""

    def objective(model, batch, key):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), batch["x"], ordered=True)
        return train._fit.nll(model, batch, key)

    return objective


def same_model(a, b):
    return eqx.tree_equal(a.model, b.model)


# -- what comes out ---------------------------------------------------------------------------------------------------


def test_maximum_likelihood_finds_mean_and_standard_deviation():
    x = rows(1000)
    result = fit(affine(), x, EVERY_ROW, steps=1500, batch_size=1000, learning_rate=0.02)
    z = result.model.encode(x)["z"]
    np.testing.assert_allclose(np.mean(z, axis=0), 0, atol=0.01)
    np.testing.assert_allclose(np.std(z, axis=0), 1, atol=0.01)
    entropy = 0.5 * np.log(2 * np.pi * np.e * np.var(x, axis=0)).sum()
    assert result.loss == pytest.approx(entropy, abs=0.01)


def test_a_fit_ends_where_its_rival_was_better_after_as_many_steps():
    settings = {"steps": 40, "evaluate_every": 5}
    alone = fit(affine(), rows(), **settings)
    steps, losses = alone.history["step"], np.array(alone.history["validation"])

    def rival(shift):
        return dataclasses.replace(alone, history={**alone.history, "validation": (losses + shift).tolist()})

    beaten = fit(affine(), rows(), rival=rival(-1e-3), **settings)
    assert beaten.stopped == "behind" and beaten.history["step"] == steps[:2]  # a quarter of 40 steps
    assert beaten.history["validation"] == losses[:2].tolist()
    for equal_or_worse in (rival(0.0), rival(1e-3)):
        same = fit(affine(), rows(), rival=equal_or_worse, **settings)
        assert same.stopped == "budget" and same_model(same, alone)


def test_products_of_matrices_are_as_precise_as_asked(monkeypatch):
    traced = []

    def objective(model, batch, key):
        traced.append(jax.config.jax_default_matmul_precision)
        return train._fit.nll(model, batch, key)

    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    with pytest.raises(InputError, match=r"got train\.matmul='bfloat16' on a CPU"):
        fit(affine(), rows(), steps=2, matmul="bfloat16")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # XLA's products on a CPU stay in float32
    fit(affine(), rows(), EVERY_ROW, steps=2, objective=objective, matmul="bfloat16")
    fit(affine(), rows(), EVERY_ROW, steps=2, objective=objective)
    assert traced[0] == "BF16_BF16_F32" and traced[-1] == "default"


def test_the_result_tells_how_training_went():
    result = fit(affine(), rows(), steps=35, evaluate_every=10)
    assert isinstance(result, FitResult)
    assert isinstance(result.model, INN)
    assert list(result.history) == ["step", "seconds", "train", "validation"]
    assert result.history["step"] == [10, 20, 30, 35]
    assert all(len(column) == 4 for column in result.history.values())
    assert np.all(np.diff(result.history["seconds"]) > 0)
    assert result.steps == 35
    assert result.stopped == "budget"
    assert result.seconds >= result.history["seconds"][-1]
    assert result.loss == min(result.history["validation"])
    assert result.history["train"][-1] < result.history["train"][0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.loss = 0.0


def test_the_best_weights_are_kept_when_held_out_rows_get_worse():
    x = rows(16)
    held_out = rows(200, seed=1)
    result = fit(
        coupling(), x, held_out=held_out, steps=2000, learning_rate=0.05, evaluate_every=20, patience=5, warmup=0
    )
    assert result.stopped == "patience"
    assert "train.patience" in result.message
    losses = result.history["validation"]
    assert len(losses) == np.argmin(losses) + 1 + 5
    assert result.loss == min(losses) < losses[-1]
    assert result.step == result.history["step"][np.argmin(losses)]
    assert -np.mean(result.model.log_prob(held_out)) == pytest.approx(result.loss, abs=1e-5)


def test_without_held_out_rows_the_training_objective_decides():
    result = fit(affine(), rows(), EVERY_ROW, steps=30, evaluate_every=10)
    assert result.history["validation"] == result.history["train"]
    assert result.loss == min(result.history["train"])


# -- the same key gives the same result -------------------------------------------------------------------------------


def padded():
    """A model that draws numbers of its own in every step."""
    return INN([Block("x", 1), Block("pad", 1, Pad(0.5))], [Block("z", 2)], LU(2, key=0))


@pytest.mark.parametrize("make", [coupling, padded])
def test_a_key_decides_the_result(make, monkeypatch):
    monkeypatch.setattr(train._loop, "_SECONDS_PER_CALL", 0.0)  # one step per call, however fast this machine is
    x = rows(100, dim=make().partition.data[0].size)
    one, same, other = (fit(make(), x, steps=5, batch_size=16, key=key) for key in (1, jax.random.key(1), 2))
    assert same_model(one, same)
    assert one.history["validation"] == same.history["validation"]
    assert not same_model(one, other)


@pytest.mark.parametrize(
    "make",
    [coupling, padded],
)
def test_the_speed_of_the_machine_changes_nothing(make, monkeypatch):
    x, results = rows(100, dim=make().partition.data[0].size), []
    for seconds in (0.0, 1e9):  # one step per call, or four times as many in each call
        monkeypatch.setattr(train._loop, "_SECONDS_PER_CALL", seconds)
        results.append(fit(make(), x, steps=12, batch_size=16, warmup=0, learning_rate=0.02))
    assert same_model(*results)  # to the last bit
    assert results[0].history["train"] == results[1].history["train"]


# -- when it ends -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"steps": 7}, 7),
        ({"epochs": 3}, 15),
        ({"epochs": 0.5}, 3),
        ({"epochs": 3, "steps": 4}, 4),
        ({"epochs": 1, "steps": 400}, 5),
        ({"minutes": 1e-9}, 1),
        ({"minutes": 1e-9, "steps": 100}, 1),
    ],
)
def test_the_first_budget_to_be_reached_ends_training(settings, steps):
    result = fit(affine(), rows(100), EVERY_ROW, batch_size=20, **settings)
    assert (result.steps, result.stopped) == (steps, "budget")


def test_settings_replace_those_of_a_training():
    training = Training(epochs=50, batch_size=20, learning_rate=0.5)
    result = fit(affine(), rows(100), training, steps=3, learning_rate=1e-3)
    assert result.steps == 3
    assert np.all(np.abs(result.model.bijection.raw) < 3e-3)
    with pytest.raises(pydantic.ValidationError):
        training.steps = 3
    for wrong in ({"stepz": 3}, {"steps": 0}, {"learning_rate": -1.0}, {"validation": 1.0}, {"schedule": "linear"}):
        with pytest.raises(pydantic.ValidationError):
            Training(**wrong)


def test_training_is_one_compiled_program_and_a_second_fit_of_its_shapes_needs_none():
    def programs():
        return sum(program._cached._cache_size() for program in (_steps.advance, log_probs))

    start = programs()
    fit(affine(dim=7), rows(dim=7), steps=120)  # a shape of its own
    assert programs() == start + 2
    fit(affine(dim=7), rows(count=199, dim=7, seed=1), steps=60, learning_rate=1e-3, weight_decay=1.0, key=1)
    assert programs() == start + 2


def test_evaluations_come_early_and_then_after_a_quarter_of_the_steps_made():
    steps = fit(affine(), rows(), steps=500, patience=0).history["step"]
    gaps = np.diff([0, *steps])
    assert steps[:4] == [25, 50, 75, 100] and np.all(gaps <= np.maximum(25, np.array([0, *steps[:-1]]) // 4))
    assert steps[-1] == 500
    assert fit(affine(), rows(), steps=500, evaluate_every=60).history["step"][:2] == [60, 120]


def test_a_wrong_setting_is_told_in_one_line():
    with pytest.raises(InputError) as caught:
        fit(affine(), rows(), stepz=3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_few_rows_are_enough(count):
    result = fit(affine(), rows(count), steps=3, batch_size=256)
    assert result.steps == 3
    assert np.isfinite(result.loss)


# -- how it goes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "optimiser"),
    list(zip(["cosine", "exponential", "constant", "cosine"], OPTIMISERS, strict=True)),
)
def test_schedules_and_optimisers(schedule, optimiser):
    settings = {"schedule": schedule, "optimiser": optimiser, "learning_rate": 0.1, "warmup": 10}
    if schedule == "exponential":
        settings["decay"] = 0.05
    steps = 40
    # an objective of slope one makes every optimiser step by just the learning rate
    result = fit(affine(), rows(), EVERY_ROW, objective=total, steps=steps, average=0, **settings)
    done = np.arange(steps) / steps
    shape = {"cosine": 0.5 * (1 + np.cos(np.pi * done)), "exponential": 0.05**done, "constant": np.ones(steps)}
    rate = 0.1 * shape[schedule] * np.minimum(1, (np.arange(steps) + 1) / 10)
    np.testing.assert_allclose(result.model.bijection.raw, -rate.sum(), rtol=1e-2)
    learnt = fit(affine(), rows(), steps=steps, **settings)
    assert learnt.history["validation"][-1] < -np.mean(affine().log_prob(rows()))


def test_weight_decay_shrinks_what_the_objective_leaves_alone():
    model = eqx.tree_at(lambda inn: inn.bijection.raw, affine(), jnp.ones((2, 2)))
    settings = {"learning_rate": 0.1, "weight_decay": 0.5, "schedule": "constant", "warmup": 0, "average": 0}
    # without held-out rows the objective falls with every step, so that the last weights are kept
    result = fit(model, rows(), EVERY_ROW, objective=falling, steps=10, evaluate_every=10, **settings)
    np.testing.assert_allclose(result.model.bijection.raw, (1 - 0.05) ** 10, rtol=1e-4)


def falling(model, batch, key):
    """An objective without a gradient."""
    return 0 * jax.lax.stop_gradient(total(model, batch, key))


def test_only_the_chosen_part_is_trained():
    bijection = Chain([LU(2, key=0), Elementwise(ShiftScale(), 2), Orthogonal(2, key=0)])
    start = INN([Block("x", 2)], [Block("z", 2)], bijection)
    result = fit(start, rows(), steps=5, where=lambda inn: inn.bijection.bijections[1])
    assert eqx.tree_equal(result.model.bijection.bijections[::2], start.bijection.bijections[::2])
    assert np.all(result.model.bijection.bijections[1].raw != 0)
    everything = fit(start, rows(), steps=5)
    assert not eqx.tree_equal(everything.model.bijection.bijections[0], start.bijection.bijections[0])
    assert eqx.tree_equal(everything.model.bijection.bijections[2], start.bijection.bijections[2])


def test_layers_are_fitted_to_the_data_first_and_only_once():
    x = 100 + 10 * rows()
    first = fit(coupling(ActNorm(2)), x, steps=1, learning_rate=1e-9)
    z = first.model.encode(x)["z"]
    np.testing.assert_allclose(np.mean(z, axis=0), 0, atol=0.3)
    np.testing.assert_allclose(np.std(z, axis=0), 1, atol=0.3)
    again = fit(first.model, 2 * x, steps=1, learning_rate=1e-9)
    np.testing.assert_allclose(again.model.bijection.shift, first.model.bijection.shift, rtol=1e-6)


def test_layers_stay_as_they_are_where_it_is_asked_for():
    unfitted = fit(coupling(ActNorm(2)), 100 + 10 * rows(), initialise=False, steps=1, learning_rate=1e-9)
    np.testing.assert_allclose(unfitted.model.bijection.shift, 0, atol=1e-6)


def test_noise_known_values_and_conditions_are_trained_together():
    rng = np.random.default_rng(0)
    x, c = rng.normal(size=(2, 300, 1)).astype(np.float32)
    inn = INN(
        [Block("x", 1), Block("eps", 1, Noise(0.5, added_to="y"))],
        [Block("y", 1, Given(0.1)), Block("z", 1)],
        Chain([LU(2, key=0), Coupling(Channels(2, kept=0), ShiftScale(), MLP, cond_shape=(1,), key=0)]),
        cond=[Block("c", 1)],
    )
    data = {"x": x, "y": 2 * x + c, "c": c}
    result = fit(inn, data, steps=150, learning_rate=0.02, warmup=0, batch_size=64)
    assert result.loss < -np.mean(inn.log_prob(x, y=data["y"], c=c, key=0)) - 1


# -- what it trains on ------------------------------------------------------------------------------------------------


def test_held_out_rows_are_never_trained_on():
    x, seen = np.arange(80, dtype=np.float32).reshape(40, 2) / 80, []
    settings = Training(validation=0.25, steps=8, batch_size=5, evaluate_every=8)
    fit(affine(), x, settings, objective=spied(seen))
    jax.effects_barrier()
    # the held-out rows are looked at before the first step, and after the last
    trained, held_out = np.concatenate(seen[2:10]), np.concatenate([*seen[:2], *seen[10:]])
    assert len(trained) == 8 * 5
    assert len(np.unique(held_out[:, 0])) == 10
    assert not set(trained[:, 0]) & set(held_out[:, 0])
    assert set(trained[:, 0]) | set(held_out[:, 0]) == set(x[:, 0])
    epoch, counts = np.unique(trained[:30, 0], return_counts=True)
    assert len(epoch) == 30
    assert np.all(counts == 1)
    assert not np.all(np.diff(trained[:30, 0]) > 0)  # shuffled


def test_held_out_rows_are_looked_at_in_batches_of_one_size():
    held_out, seen = rows(23), []
    settings = Training(batch_size=10, steps=1, learning_rate=1e-9)
    result = fit(affine(), rows(), settings, held_out_objective=spied(seen), held_out=held_out)
    jax.effects_barrier()
    assert {len(batch) for batch in seen} == {10}
    assert {row.tobytes() for row in np.concatenate(seen)} == {row.tobytes() for row in held_out}
    # three rows are left at the end; the last ten stand for them
    means = [-np.mean(result.model.log_prob(batch)) for batch in (held_out[:10], held_out[10:20], held_out[13:])]
    assert result.loss == pytest.approx(np.average(means, weights=[10, 10, 3]), abs=1e-5)


def test_given_held_out_rows_leave_all_others_for_training():
    x, seen = np.arange(40, dtype=np.float32).reshape(20, 2) / 40, []
    fit(affine(), x, objective=spied(seen), steps=4, batch_size=5, held_out=x[:3] + 7)
    jax.effects_barrier()
    trained = np.concatenate([batch for batch in seen if len(batch) == 5])
    assert set(trained[:, 0]) == set(x[:, 0])
    assert {len(batch) for batch in seen} == {3, 5}


def test_an_iterator_ends_training_with_its_last_batch():
    result = fit(affine(), (rows(10, seed=i) for i in range(25)), epochs=100, evaluate_every=10)
    assert (result.steps, result.stopped) == (25, "stream")
    assert result.history["step"] == [10, 20, 25]


def test_a_list_of_batches_starts_again():
    batches = [{"x": rows(10, seed=i)} for i in range(4)]
    result = fit(affine(), batches, steps=11, held_out=rows(50, seed=9))
    assert (result.steps, result.stopped) == (11, "budget")
    assert fit(affine(), batches, epochs=2).steps == 8


def steps_and_rows(batches):
    seen = []
    result = fit(affine(), batches, objective=spied(seen), epochs=1)
    jax.effects_barrier()
    return result.steps, sum(len(batch) for batch in seen)


def test_batches_of_one_size_are_all_trained_on():
    assert steps_and_rows(iter([rows(8, seed=i) for i in range(6)])) == (6, 48)


@pytest.mark.parametrize("sizes", [(8, 8, 8, 3), (3, 8, 8, 8)], ids=["last", "first"])
def test_a_batch_of_another_size_is_trained_on_too(sizes):
    batches = [rows(size, seed=i) for i, size in enumerate(sizes)]
    assert steps_and_rows(iter(batches)) == (4, 27)


def test_an_error_of_the_stream_is_raised():
    def batches():
        yield rows(10)
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="went away"):
        fit(affine(), batches(), steps=10)


def test_no_thread_stays_behind():
    before = threading.active_count()
    fit(affine(), [rows(10, seed=i) for i in range(20)], steps=3, evaluate_every=1)
    assert threading.active_count() == before


class Nothing:
    """A loader without batches."""

    asked = 0

    def __iter__(self):
        self.asked += 1
        if self.asked > 3:
            raise RuntimeError("asked for batches again and again")
        return iter(())


def test_a_loader_without_batches_is_told():
    with pytest.raises(InputError, match="without batches"):
        fit(affine(), Nothing(), steps=10)


# -- numbers that are not finite --------------------------------------------------------------------------------------


def all_finite(model):
    return all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "make",
    [
        lambda: LU(2, key=0),
        lambda: Chain([ActNorm(2), LU(2, key=0)]),
    ],
    ids=["LU", "ActNorm"],
)
def test_a_row_that_is_not_finite_stops_training_and_is_named(make, value):
    x = rows(50)
    x[17, 1] = value
    result = fit(coupling(make()), x, EVERY_ROW, steps=200, batch_size=5)
    assert result.stopped == "non-finite"
    assert result.steps < 10  # within the first epoch
    assert "'x'" in result.message
    assert "1 rows" in result.message
    assert "\n" not in result.message
    assert all_finite(result.model)


def test_on_demand_it_is_an_error():
    x = rows(50)
    x[17, 1] = np.nan
    with pytest.raises(TrainingError, match="'x'"):
        fit(coupling(), x, EVERY_ROW, steps=200, batch_size=5, throw=True)


def test_held_out_rows_that_are_not_finite_are_told():
    held_out = rows(20, seed=1)
    held_out[3, 0] = np.nan
    try:
        result = fit(affine(), rows(), held_out=held_out, steps=20)
    except InputError:
        return
    assert result.stopped == "non-finite"


def test_the_best_weights_before_it_are_kept():
    def batches():
        for i in range(40):
            x = rows(20, seed=i)
            yield np.full_like(x, np.nan) if i == 30 else x

    held_out = rows(100, seed=99)
    result = fit(affine(), batches(), held_out=held_out, steps=100, evaluate_every=10, warmup=0)
    assert (result.stopped, result.steps) == ("non-finite", 30)
    assert "step 30" in result.message
    assert result.loss == min(result.history["validation"])
    assert -np.mean(result.model.log_prob(held_out)) == pytest.approx(result.loss, abs=1e-5)
    assert result.loss < result.history["validation"][0]


def test_the_layer_that_overflows_is_named():
    flow = Chain([LU(2, key=0), Elementwise(ShiftScale(), 2)])
    flow = eqx.tree_at(lambda chain: chain.bijections[1].raw, flow, jnp.full((2, 2), 3e38))
    result = fit(coupling(flow), rows(), steps=5)
    assert (result.stopped, result.steps) == ("non-finite", 0)
    assert "Chain[1].Elementwise" in result.message or "gradient" in result.message


def test_a_gradient_that_is_not_finite_stops_training_too():
    def objective(model, batch, key):
        return jnp.sum(jnp.sqrt(0 * model.bijection.raw))

    result = fit(affine(), rows(), objective=objective, steps=5)
    assert (result.stopped, result.steps) == ("non-finite", 0)
    assert "gradient" in result.message
    assert all_finite(result.model)


def test_an_objective_that_was_never_finite_is_not_told_as_zero():
    result = fit(affine(), np.full((20, 2), np.nan, np.float32), EVERY_ROW, steps=5)
    assert (result.stopped, result.steps) == ("non-finite", 0)
    assert not np.isfinite(result.loss)
    assert not np.any(np.isfinite(result.history["train"]))


# -- what a user can get wrong ----------------------------------------------------------------------------------------


def conditioned():
    return INN([Block("x", 2)], [Block("y", 1, Given()), Block("z", 1)], LU(2, key=0))


@pytest.mark.parametrize(
    ("make", "data"),
    [
        (affine, np.zeros((0, 2))),
        (affine, np.zeros((10, 3))),
        (affine, {}),
        (affine, {"x": rows(10), "y": rows(9)}),
        (affine, {"x": rows(10), "y": rows(10)}),
        (affine, iter([])),
        (conditioned, rows(10)),
        (conditioned, {"x": rows(10), "y": np.zeros(10)}),
        (conditioned, {"x": rows(10), "y": np.zeros((10, 2))}),
        (lambda: INN([Block("a", 1), Block("b", 1)], [Block("z", 2)], LU(2)), rows(10)),
        (affine, np.float32(3)),
        (affine, "train.csv"),
    ],
)
def test_data_that_do_not_fit_are_told_in_one_line(make, data):
    with pytest.raises(InputError) as caught:
        fit(make(), data, steps=2)
    assert "\n" not in str(caught.value)
    assert "expected" in str(caught.value)
