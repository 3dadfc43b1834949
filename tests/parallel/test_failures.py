"""Who is to blame, told from what the ranks report."""

import pickle

import pytest

from gradbook.parallel.failures import (
    LATE,
    LOST,
    RAISED,
    CollectiveError,
    PeerLate,
    PeerLost,
    Raising,
    Report,
    Stalled,
    cause,
    exit_words,
    report,
    settled,
)


def late(peer, step=0):
    return Report(peer, step, LATE, "did not come")


def test_a_rank_that_ended_without_a_word_is_to_blame():
    reports = {0: Report(1, 4, LOST, "has gone"), 2: Report(2, 1, RAISED, "error")}
    error = cause(reports, {1: "was ended"}, [], [4, 3, 1])
    assert (error.rank, error.step, str(error)) == (1, 3, "rank 1, step 3: was ended")
    assert cause({}, {2: "x", 1: "x"}, [], [0, 5, 5]).rank == 1
    assert cause({}, {2: "x", 1: "x"}, [], [0, 5, 4]).rank == 2
    assert cause({}, {1: "x"}, [], [0, -1]).step == 0


def test_an_error_comes_before_those_who_waited_for_it():
    reports = {
        0: Report(2, 1, LOST, "has gone"),
        1: late(0),
        2: Report(2, 1, RAISED, "Oops: no", "trace"),
    }
    error = cause(reports, {}, [], [1, 1, 1])
    assert str(error) == "rank 2, step 1: Oops: no"
    assert error.__notes__ == ["trace"]
    both = {0: Report(0, 3, RAISED, "later"), 1: Report(1, 2, RAISED, "earlier")}
    assert cause(both, {}, [0], [3, 2]).rank == 1


def test_who_waits_leads_to_who_was_waited_for():
    # 0 waits for 1, which waits for 3, which says nothing; it was last seen in step 5.
    error = cause({0: late(1, 6), 1: late(3, 6), 2: late(0, 6)}, {}, [3], [6, 6, 6, 5])
    assert (error.rank, error.step) == (3, 5)
    # It never began: then the step in which it was missed.
    assert cause({0: late(1, 2)}, {}, [1], [2, -1]).step == 2
    assert cause({0: late(1, -1)}, {}, [1], [-1, -1]).step == 0


def test_who_gave_up_first_is_not_to_blame():
    # 0 waits for 2, gives up and goes; 2 waits for 1, and sees 0 go. Rank 1 says nothing.
    reports = {0: late(2, 2), 2: Report(0, 1, LOST, "has gone")}
    error = cause(reports, {}, [1, 3], [2, 1, 1, 7])
    assert str(error) == "rank 1, step 1: did not come in time"


def test_ranks_that_wait_in_a_circle_end_the_search():
    error = cause({0: late(1), 1: late(2), 2: late(0)}, {}, [], [0, 0, 0])
    assert error.rank in range(3)


def test_reports_name_the_rank_that_the_error_names():
    assert report(PeerLost(3), 1, 2).kind == LOST
    assert report(PeerLate(3), 1, 2).kind == LATE
    assert {report(error, 1, 2).rank for error in (PeerLost(3), PeerLate(3))} == {3}
    assert "rank 1 waited" in report(PeerLost(3), 1, 2).why
    assert report(CollectiveError(3, 7, "odd"), 1, 2) == Report(3, 7, RAISED, "odd")
    assert report(KeyError("k"), 1, 2, "trace") == Report(1, 2, RAISED, "KeyError: 'k'", "trace")


def test_an_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(CollectiveError(3, 7, "why")))
    assert (error.rank, error.step, str(error)) == (3, 7, "rank 3, step 7: why")


def test_exit_codes_in_words():
    assert exit_words(-9) == "its process was ended by SIGKILL"
    assert exit_words(3) == "its process ended with exit code 3"
    assert "still runs" in exit_words(None)
    # A signal that has a number only.
    assert exit_words(-40) == "its process was ended by signal 40"


def test_there_is_nothing_to_wait_for_once_a_single_rank_is_silent():
    assert settled({}, [])
    assert not settled({}, [1])
    assert settled({0: late(1)}, [1])
    assert settled({0: late(2), 2: Report(0, 1, LOST, "has gone")}, [1])
    # Another may still say whom it waits for, or an error may still be told.
    assert not settled({0: late(2)}, [1, 2])
    assert not settled({0: late(1), 2: Report(2, 1, RAISED, "error")}, [1])
    # A rank that was lost is ending: how, is still to come.
    assert not settled({0: Report(1, 4, LOST, "has gone")}, [1])


def test_faults_wait_for_their_rank_and_step():
    fault = Raising(1, 2)
    fault(1, 1)
    fault(2, 2)
    with pytest.raises(ArithmeticError):
        fault(1, 2)
    Stalled(1, 2, 1e9)(2, 1)
