"""Schedulers in annotations, however long they are."""

from svcproxy.backends.ipvs.settings import SCHEDULERS, unknown_flags
from svcproxy.limits import SCHEDULER_FLAGS, SCHEDULER_NAME_CHARACTERS
from svcproxy.state.scheduling import FLAGS, SCHEDULER, Wish, scheduler_wish


def test_what_is_written_is_understood() -> None:
    assert scheduler_wish(()) == Wish()
    assert scheduler_wish(((SCHEDULER, " WLC "), (FLAGS, ""))) == Wish("wlc", ())
    router = (
        ("kube-router.io/service.scheduler", "mh"),
        ("kube-router.io/service.schedflags", "a,b"),
    )
    assert scheduler_wish(router) == Wish("mh", ("a", "b"))
    assert scheduler_wish(((SCHEDULER, "sh"), *router)).scheduler == "sh"


def test_a_long_text_is_cut_and_stays_unusable() -> None:
    for name in ("rr" * 100_000, "rr\0" + "x" * 300, "mh" + " " * 40 + "x"):
        wish = scheduler_wish(((SCHEDULER, name), (FLAGS, name)))
        assert wish.scheduler not in SCHEDULERS
        assert len(wish.scheduler) <= SCHEDULER_NAME_CHARACTERS + 3
        assert wish.flags
        assert unknown_flags("mh", wish.flags) == wish.flags


def test_many_flags_are_cut() -> None:
    wish = scheduler_wish(((FLAGS, ",".join(["mh-port"] * 100_000)),))
    assert wish.flags is not None
    assert len(wish.flags) == SCHEDULER_FLAGS + 1
    assert len(unknown_flags("mh", wish.flags)) == 1
