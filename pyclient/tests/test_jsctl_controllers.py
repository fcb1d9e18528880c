"""Read-only commands and waits while no controller is online."""

from __future__ import annotations

import time
from typing import Any, Callable, List

import pytest
from conftest import Ran, Server
from fake import Fake

from jsclient import Client, NoControllerError

Jsctl = Callable[..., Ran]


def test_without_controller_ping_fails_before_its_timeout(jsctl: Jsctl, server: Server) -> None:
    started = time.monotonic()
    ran = jsctl("--timeout", "600", "ping", "1.1")
    assert ran.code == 1 and "no controller serves" in ran.err
    assert time.monotonic() - started < 600


def test_lost_controller_during_exec_is_reported_once(
    jsctl: Jsctl, fake: Fake, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jsclient.cli.output.CONTROLLER_CHECK_INTERVAL_SECONDS", 0.1)
    monkeypatch.setattr("jsclient._session._HEARTBEAT_CACHE_SECONDS", 0.0)

    def end(node: Any, command: Any) -> Any:
        fake.beating = False
        raw.delete("jsacc:acs")
        return {}

    fake.programs["end"] = end
    fake.deaf.add((1, 2))
    ran = jsctl("exec", "1.1,1.2", "--timeout", "1", "--", "end")
    assert ran.code == 4 and ran.err.count("start jsacc, or check the address; still waiting") == 1


def test_lost_controller_ends_a_read_only_command(
    jsctl: Jsctl, fake: Fake, raw: Any, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jsclient.cli.output.CONTROLLER_CHECK_INTERVAL_SECONDS", 0.05)
    monkeypatch.setattr("jsclient._controllers.CONTROLLER_TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr("jsclient._session._HEARTBEAT_CACHE_SECONDS", 0.0)
    monkeypatch.setattr("jsclient.node_commands.PRESENCE_CHECK_SECONDS", 0.1)
    fake.deaf.add((1, 1))
    take = fake._take

    def last(command: Any) -> None:
        fake.beating = False
        raw.delete("jsacc:acs")
        take(command)

    monkeypatch.setattr(fake, "_take", last)
    sentence = "start jsacc, or check the address"
    for words in (["ping", "1.1"], ["info", "os", "1.1", "--json"]):
        fake.beat()
        ran = jsctl(*words, "--timeout", "60")
        assert ran.code == 1 and ran.err.splitlines()[-1].endswith(sentence), (words, ran)
    for ask in (client.ping, client.get_os_info, client.get_msgs):
        fake.beat()
        with pytest.raises(NoControllerError, match=sentence):
            ask(1, 1, timeout=60)  # type: ignore[operator]


def test_lost_controller_keeps_earlier_results(
    jsctl: Jsctl, fake: Fake, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jsclient.cli.output.CONTROLLER_CHECK_INTERVAL_SECONDS", 0.05)
    monkeypatch.setattr("jsclient._controllers.CONTROLLER_TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr("jsclient._session._HEARTBEAT_CACHE_SECONDS", 0.0)
    fake.schedules = {(1, 2): [{"id": "hourly", "period": 3600}]}
    fake.deaf.add((1, 1))
    take = fake._take

    def last(command: Any) -> None:
        if command["nid"] == 1:
            fake.beating = False
            raw.delete("jsacc:acs")
        take(command)

    monkeypatch.setattr(fake, "_take", last)
    ran = jsctl("schedules", "1.2,1.1", "--timeout", "60")
    told = ran.err.splitlines()
    assert ran.code == 1 and "hourly" in ran.out and "1 OK, 0 failed, 1 without answer (1.1)" in told, ran
    assert any("could not be withdrawn" in line and "jsctl cancel" in line for line in told), ran
    assert told[-1].endswith("start jsacc, or check the address") and "jsctl kill" not in ran.err, ran
    fake.beat()
    ran = jsctl("schedules", "1.2,1.1", "--timeout", "1", "--wait")
    assert ran.code == 4 and "hourly" in ran.out and "still waiting" in ran.err, "--wait waits on"


def test_killed_controller_is_detected_by_its_old_heartbeat(
    client: Client, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jsclient.keys.HEARTBEAT_TIMEOUT_SECONDS", 2)
    monkeypatch.setattr("jsclient._controllers.CONTROLLER_TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr("jsclient._session._HEARTBEAT_CACHE_SECONDS", 0.2)
    fake.deaf.add((1, 1))
    take = fake._take

    def last(command: Any) -> None:
        fake.beating = False  # its last heartbeat remains
        take(command)

    monkeypatch.setattr(fake, "_take", last)
    with pytest.raises(NoControllerError, match="last controller heartbeat [0-9]+ s ago; start jsacc"):
        client.get_os_info(1, 1, timeout=20)


def test_missing_heartbeat_for_a_moment_ends_no_wait(
    client: Client, fake: Fake, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jsclient._session._HEARTBEAT_CACHE_SECONDS", 0.0)
    fake.deaf.add((1, 1))
    looks: List[bool] = []
    check = client.check

    def looked() -> None:
        if looks == [True]:
            raw.delete("jsacc:acs")
        try:
            check()
            looks.append(True)
        except NoControllerError:
            looks.append(False)
            raise
        finally:
            if False in looks and looks[-1]:
                fake.end(fake.seen[-1]["id"], (1, 1))

    monkeypatch.setattr(client, "check", looked)
    assert client.ping(1, 1, timeout=20) == ""
    assert False in looks and looks[-1]
