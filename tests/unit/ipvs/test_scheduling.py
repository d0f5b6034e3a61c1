"""Schedulers in annotations, however long they are."""

from svcproxy.backends.ipvs.core.settings import (
    ANNOTATIONS,
    FLAGS,
    SCHEDULER,
    SCHEDULERS,
    SchedulerChoice,
    scheduler_choice,
    unknown_flags,
)
from svcproxy.limits import SCHEDULER_FLAGS, SCHEDULER_NAME_CHARACTERS


def test_what_is_written_is_understood() -> None:
    assert scheduler_choice(()) == SchedulerChoice()
    assert scheduler_choice(((SCHEDULER, " WLC "), (FLAGS, ""))) == SchedulerChoice("wlc", ())
    router = (
        ("kube-router.io/service.scheduler", "mh"),
        ("kube-router.io/service.schedflags", "a,b"),
    )
    assert scheduler_choice(router) == SchedulerChoice("mh", ("a", "b"))
    assert scheduler_choice(((SCHEDULER, "sh"), *router)).scheduler == "sh"


def test_a_long_text_is_cut_and_stays_unusable() -> None:
    for name in ("rr" * 100_000, "rr\0" + "x" * 300, "mh" + " " * 40 + "x"):
        choice = scheduler_choice(((SCHEDULER, name), (FLAGS, name)))
        assert choice.scheduler not in SCHEDULERS
        assert len(choice.scheduler) <= SCHEDULER_NAME_CHARACTERS + 3
        assert choice.flags
        assert unknown_flags("mh", choice.flags) == choice.flags


def test_many_flags_are_cut() -> None:
    choice = scheduler_choice(((FLAGS, ",".join(["mh-port"] * 100_000)),))
    assert choice.flags is not None
    assert len(choice.flags) == SCHEDULER_FLAGS + 1
    assert len(unknown_flags("mh", choice.flags)) == 1


def test_every_key_that_is_read_is_declared() -> None:
    assert {SCHEDULER, FLAGS} < ANNOTATIONS
    for key in ANNOTATIONS:
        assert scheduler_choice(((key, "sh"),)) != SchedulerChoice()
    assert len(ANNOTATIONS) == 4
