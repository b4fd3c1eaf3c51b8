"""Times in turns: with a clock that we wind ourselves, known durations give known ratios and intervals."""

from __future__ import annotations

import math
import types

import pytest
import torch
from torch import nn

from labkit import clock
from labkit.clock import compare, limit_threads, sample
from labkit.errors import LabkitError


class Hands:
    """Stands in for the module `time`; work moves the hands, the machine may be slow for a while."""

    def __init__(self) -> None:
        self.wall = self.processor = 0.0
        self.calls: list[str] = []

    def perf_counter(self) -> float:
        return self.wall

    monotonic = perf_counter

    def process_time(self) -> float:
        return self.processor

    def work(self, name: str, wall, processor=lambda call: 0.0):
        """A function that takes `wall(i)` seconds on its i-th call."""
        times: list[None] = []

        def fn(*inputs):
            self.wall += wall(len(times))
            self.processor += processor(len(times))
            times.append(None)
            self.calls.append(name)

        return fn


@pytest.fixture
def hands(monkeypatch):
    hands = Hands()
    monkeypatch.setattr(clock, "time", hands)
    return hands


@pytest.fixture
def two_threads():
    with limit_threads(2):
        yield


def test_known_durations_give_known_ratios(hands):
    timing = compare(
        {"plain": hands.work("plain", lambda i: 0.2), "slim": hands.work("slim", lambda i: 0.05)}, rounds=9
    )
    assert timing.ratio("slim") == pytest.approx((0.25, 0.25, 0.25))
    assert timing.ratio("plain") == pytest.approx((1, 1, 1))
    assert timing.ratio("plain", to="slim") == pytest.approx((4, 4, 4))
    assert timing.median("slim") == pytest.approx(0.05)


def test_what_slows_the_machine_leaves_the_ratio_alone(hands):
    def slow(i):
        return 1 + 5 * math.sin(i) ** 2

    timing = compare({"a": hands.work("a", lambda i: slow(i)), "b": hands.work("b", lambda i: 2 * slow(i))}, rounds=12)
    times = timing.seconds["wall"]["a"]
    assert max(times) > 3 * min(times)
    assert timing.ratio("b") == pytest.approx((2, 2, 2))


def test_the_interval_is_as_wide_as_the_rounds_disagree(hands):
    def either(i):
        return 1.9 if i % 2 else 2.1

    timing = compare({"a": hands.work("a", lambda i: 1.0), "b": hands.work("b", either)}, rounds=30, seconds=1e9)
    median, low, high = timing.ratio("b")
    assert (low, high) == pytest.approx((1.9, 2.1)) and low <= median <= high
    assert timing.ratio("b") == (median, low, high)  # the bootstrap is seeded
    outlier = compare(
        {"a": hands.work("a", lambda i: 1.0), "b": hands.work("b", lambda i: 50.0 if i == 7 else 2.0)},
        rounds=30,
        seconds=1e9,
    )
    assert outlier.ratio("b") == pytest.approx((2, 2, 2))


def test_every_round_runs_everyone_once_in_changing_order(hands):
    names = ["a", "b", "c"]
    compare({name: hands.work(name, lambda i: 0.01) for name in names}, rounds=20, warmup=2)
    rounds = [hands.calls[i : i + 3] for i in range(0, len(hands.calls), 3)]
    assert len(rounds) == 2 + 20
    assert all(sorted(order) == names for order in rounds)
    assert len({tuple(order) for order in rounds[2:]}) >= 5
    assert {order[0] for order in rounds[2:]} == set(names)


def test_warm_up_is_not_counted(hands):
    first = hands.work("a", lambda i: 100.0 if i < 2 else 1.0)
    timing = compare({"a": first}, rounds=6, warmup=2)
    assert timing.seconds["wall"]["a"] == pytest.approx([1.0] * 6)


@pytest.mark.parametrize("seconds, rounds", [(0.0, 5), (11.0, 6), (1e9, 30)])
def test_time_is_up_but_never_before_five_rounds(hands, seconds, rounds):
    timing = compare({"a": hands.work("a", lambda i: 2.0)}, seconds=seconds)
    assert len(timing.seconds["wall"]["a"]) == rounds


def test_two_clocks_stand_side_by_side(hands, two_threads):
    seen = {}

    def fn(name, wall, processor):
        work = hands.work(name, lambda i: wall, lambda i: processor)

        def call():
            seen.setdefault(name, []).append(torch.get_num_threads())
            work()

        return call

    timing = compare({"a": fn("a", 1.0, 0.5), "b": fn("b", 3.0, 0.25)}, clocks=("cpu", "wall"), rounds=5, warmup=0)
    assert timing.ratio("b") == pytest.approx((0.5, 0.5, 0.5))  # the first clock is the judge
    assert timing.ratio("b", clock="wall") == pytest.approx((3, 3, 3))
    assert timing.threads == {"cpu": 1, "wall": 2}
    assert seen["a"] == [1] * 5 + [2] * 5
    assert torch.get_num_threads() == 2


def test_threads_and_modes_are_restored_after_an_error(two_threads):
    model = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        compare({"a": model}, torch.zeros(1, 3), clocks=("cpu",))
    assert torch.get_num_threads() == 2
    assert model.training and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_models_are_called_with_the_inputs_at_inference(hands):
    seen = []

    class Model(nn.Module):
        def forward(self, x, y=None):
            seen.append((x, y, self.training, torch.is_inference_mode_enabled()))

    model, x, y = Model(), torch.zeros(1), torch.ones(1)
    compare({"a": model}, x, rounds=5, warmup=0)
    compare({"a": model}, (x, y), rounds=5, warmup=0)
    assert seen == [(x, None, False, True)] * 5 + [(x, y, False, True)] * 5
    assert model.training


def test_the_table_says_what_was_measured_how_and_on_what(hands, two_threads):
    def times(wall, processor):
        return lambda i: wall, lambda i: processor

    timing = compare(
        {
            "plain": hands.work("plain", *times(0.004, 0.002)),
            "slim": hands.work("slim", *times(0.003, 0.001)),
        },
        rounds=5,
        clocks=("cpu", "wall"),
    )
    assert repr(timing.table()) == (
        "       cpu, 1 thread (ms)  × plain            95 %  wall, 2 threads (ms)  × plain            95 %\n"
        "-----  ------------------  -------  --------------  --------------------  -------  --------------\n"
        "plain                2.00    1.000               -                  4.00    1.000               -\n"
        "slim                 1.00    0.500  0.500 to 0.500                  3.00    0.750  0.750 to 0.750"
    )
    assert repr(timing).endswith(f"Medians of 5 rounds (cpu), 5 rounds (wall) in turns, on {timing.device}.")
    assert timing._repr_html_().startswith("<table>") and timing.device in timing._repr_html_()
    assert timing.values()["wall"]["slim"] == pytest.approx(
        {"seconds": 0.003, "rounds": 5, "ratio": 0.75, "low": 0.75, "high": 0.75}
    )
    assert timing.values()["threads"] == {"cpu": 1, "wall": 2}


@pytest.mark.parametrize("seconds, text", [(2.5, "(s)"), (2.5e-3, "(ms)"), (2.5e-6, "(µs)")])
def test_units_follow_the_times(hands, seconds, text):
    table = repr(compare({"a": hands.work("a", lambda i: seconds)}).table())
    assert text in table and "2.50" in table


def test_a_gpu_is_timed_by_its_own_events(monkeypatch):
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("record")

        def elapsed_time(self, end):
            return 12.0

    gpu = types.SimpleNamespace(Event=Event, synchronize=lambda device: log.append("wait"))
    monkeypatch.setattr(torch, "cuda", gpu)
    assert sample(lambda: log.append("work"), (), "wall", torch.device("cuda")) == 0.012
    assert log == ["record", "work", "record", "wait"]


def nothing():
    pass


@pytest.mark.parametrize(
    "candidates, options, sentence",
    [
        ({}, {}, "There is nothing to time"),
        ({"a": 3}, {}, '"a" is a int; expected a model or a function'),
        ({"a": nothing}, {"rounds": 2}, "2 rounds give no interval"),
        ({"a": nothing}, {"clocks": ("sun",)}, "choose from wall, cpu"),
        ({"a": nothing}, {"clocks": ()}, "choose from wall, cpu"),
        ({"a": nothing}, {"inputs": torch.zeros(1, device="meta")}, '"meta" cannot be timed'),
    ],
)
def test_errors_are_sentences(candidates, options, sentence):
    with pytest.raises(LabkitError, match=sentence):
        compare(candidates, **options)


def test_unknown_names_are_answered_with_the_known_ones(hands):
    timing = compare({"plain": hands.work("plain", lambda i: 1.0)})
    with pytest.raises(LabkitError, match=r'"plane" was not timed; there is plain. Did you mean "plain"\?'):
        timing.ratio("plane")
    with pytest.raises(LabkitError, match='The clock "cpu" did not run; there is wall'):
        timing.median("plain", clock="cpu")
