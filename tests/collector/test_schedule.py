"""The queue of one connection, with time in the test's hand."""

from __future__ import annotations

import itertools

from collector.schedule import Job, Schedule, SteadyClock, Ticket, next_due_ns, phase_ns

S = 1_000_000_000
T0 = 1_795_000_000 * S


def second(n: float) -> int:
    return T0 + round(n * S)


def run(schedule: Schedule, until_ns: int, now_ns: int, asking_ns: int = 0) -> list[tuple[str, int, int]]:
    """Take whatever is due until a time, each request lasting `asking_ns` and succeeding."""
    taken = []
    while now_ns < until_ns:
        ticket = schedule.take(now_ns)
        if ticket is None:
            wait = schedule.wait_ns(now_ns)
            assert wait is not None
            assert wait > 0
            now_ns += wait
            continue
        if now_ns >= until_ns:
            break
        taken.append((ticket.device, ticket.job, now_ns))
        now_ns += asking_ns
        schedule.succeeded(ticket, now_ns)
    return taken


def test_the_first_poll_is_at_once_and_the_rest_on_multiples_of_the_period() -> None:
    schedule = Schedule()
    schedule.set_jobs("m", [Job(S, 1)], second(0.123))

    times = [at for *_, at in run(schedule, second(5), second(0.123))]

    assert times[0] == second(0.123)
    assert {(at - phase_ns("m", S)) % S for at in times[1:]} == {0}
    assert len(times) == 6


def test_phases_are_stable_and_spread_over_the_period() -> None:
    phases = [phase_ns(f"meter-{n}", 60 * S) for n in range(600)]

    assert phases == [phase_ns(f"meter-{n}", 60 * S) for n in range(600)]
    assert phase_ns("meter-7", 60 * S) == 34_500_000_000
    by_ten_seconds = [
        sum(low <= phase < low + 10 * S for phase in phases) for low in range(0, 60 * S, 10 * S)
    ]
    assert min(by_ten_seconds) > 60


def test_missed_polls_are_counted_and_not_queued_up() -> None:
    schedule = Schedule()
    schedule.set_jobs("m", [Job(S, 1)], second(0))
    first = schedule.take(second(0))
    assert first is not None
    due = next_due_ns("m", S, second(0))

    late = schedule.take(due + 3 * S + S // 2)

    assert late is not None
    assert schedule.missed("m") == 3
    assert schedule.take(due + 3 * S + S // 2) is None
    assert schedule.wait_ns(due + 3 * S + S // 2) == S // 2


def test_under_overload_the_higher_priority_keeps_its_rate() -> None:
    schedule = Schedule()
    schedule.set_jobs("low", [Job(S, 1)], second(0), priority=0)
    schedule.set_jobs("high", [Job(S, 1)], second(0), priority=5)

    taken = run(schedule, second(60), second(0), asking_ns=round(0.8 * S))

    asked = [device for device, *_ in taken]
    assert asked.count("high") >= 58
    assert schedule.missed("high") == 0
    assert schedule.missed("low") >= 35


def test_under_overload_the_lowest_priority_is_slowed_down_and_never_silenced() -> None:
    schedule = Schedule()
    schedule.set_jobs("low", [Job(S, 1)], second(0), priority=0)
    for name in ("high-1", "high-2"):
        schedule.set_jobs(name, [Job(S, 1)], second(0), priority=5)

    taken = run(schedule, second(60), second(0), asking_ns=round(0.8 * S))

    low_s = [(time_ns - second(0)) / S for device, time_ns, *_ in taken if device == "low"]
    assert len(low_s) == 5  # once in ten periods and a bit
    assert max(b - a for a, b in itertools.pairwise(low_s)) < 12
    assert schedule.held_back("low") == 5
    assert schedule.held_back("high-1") == 0
    assert schedule.missed("low") >= 50


def test_what_nobody_holds_back_never_counts_as_held_back() -> None:
    schedule = Schedule()
    schedule.set_jobs("low", [Job(S, 1)], second(0), priority=0)
    schedule.set_jobs("high", [Job(S, 1)], second(0), priority=5)

    taken = run(schedule, second(60), second(0), asking_ns=round(0.1 * S))

    assert [device for device, *_ in taken].count("low") >= 59
    assert schedule.held_back("low") == 0


def failing_round(schedule: Schedule, now_ns: int) -> tuple[bool, int]:
    """Wait for the next request and let it fail."""
    wait = schedule.wait_ns(now_ns)
    assert wait is not None
    ticket = schedule.take(now_ns + wait)
    assert ticket is not None
    return schedule.failed(ticket, now_ns + wait), now_ns + wait


def test_a_device_is_down_after_two_failed_rounds_and_then_probed_ever_more_rarely() -> None:
    schedule = Schedule()
    schedule.set_jobs("m", [Job(S, 50), Job(S, 2)], second(0))

    went_down = []
    now = second(0)
    times = []
    for _ in range(12):
        down, now = failing_round(schedule, now)
        went_down.append(down)
        times.append(now)

    assert went_down == [False, True] + [False] * 10
    waits = [round((b - a) / S) for a, b in itertools.pairwise(times[1:])]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert schedule.is_down("m")


def test_the_probe_is_the_smallest_request_and_its_answer_brings_all_back_at_once() -> None:
    schedule = Schedule()
    schedule.set_jobs("m", [Job(S, 50), Job(S, 2), Job(S, 30)], second(0))
    _, now = failing_round(schedule, second(0))
    _, now = failing_round(schedule, now)

    probe = schedule.take(now + S)
    assert probe is not None
    came_back = schedule.succeeded(probe, now + S)
    jobs = [schedule.take(now + S) for _ in range(3)]

    assert probe.job == 1
    assert came_back
    assert sorted(ticket.job for ticket in jobs if ticket) == [0, 1, 2]
    assert not schedule.is_down("m")


def test_the_rest_of_a_failed_round_is_not_asked_and_does_not_count_again() -> None:
    schedule = Schedule()
    schedule.set_jobs("m", [Job(S, 1), Job(S, 1)], second(0))
    first, second_of_round = schedule.take(second(0)), schedule.take(second(0))
    assert first is not None
    assert second_of_round is not None

    downs = [schedule.failed(first, second(0)), schedule.failed(second_of_round, second(0))]

    assert downs == [False, False]
    assert schedule.is_void(second_of_round)
    assert schedule.take(second(0)) is None


def test_a_rarely_read_device_that_failed_once_is_asked_again_soon() -> None:
    schedule = Schedule()
    schedule.set_jobs("m", [Job(900 * S, 1)], second(0))

    _, now = failing_round(schedule, second(0))

    wait = schedule.wait_ns(now)
    assert wait is not None
    assert wait <= 2 * S


def test_a_suspect_waits_for_the_healthy_but_not_for_ever() -> None:
    schedule = Schedule()
    for n in range(4):
        schedule.set_jobs(f"m{n}", [Job(S, 1)], second(0))
    schedule.set_jobs("sick", [Job(S, 1)], second(0))
    while True:
        ticket = schedule.take(second(0))
        assert ticket is not None
        if ticket.device == "sick":
            schedule.failed(ticket, second(0))
            break

    idle = run(schedule, second(12), second(1), asking_ns=round(0.3 * S))  # 4 x 0.3 s: never idle

    asked_sick = [at for device, _, at in idle if device == "sick"]
    assert asked_sick
    assert asked_sick[0] >= second(5)


def test_a_clock_set_back_stops_nothing() -> None:
    schedule = Schedule()
    schedule.set_jobs("m", [Job(S, 1)], second(1000))
    assert isinstance(schedule.take(second(1000)), Ticket)

    schedule.realign(second(10))

    wait = schedule.wait_ns(second(10))
    assert wait is not None
    assert wait <= S


class Hand:
    """A clock somebody sets."""

    def __init__(self) -> None:
        self.wall_ns = T0
        self.monotonic_ns = 5 * S

    def now_ns(self) -> int:
        return self.wall_ns


def test_time_runs_with_the_monotonic_clock_until_the_next_look_at_the_wall() -> None:
    hand = Hand()
    clock = SteadyClock(hand, lambda: hand.monotonic_ns)
    hand.wall_ns += 3600 * S  # somebody sets the clock an hour ahead
    hand.monotonic_ns += S

    before = clock.now_ns()
    step_ns = clock.look()
    after = clock.now_ns()

    assert before == T0 + S
    assert step_ns == 3599 * S
    assert after == hand.wall_ns
