"""`token` and `events --audit`: users made and ended, and what they did."""

from collections.abc import Callable

import pytest
from tests.cli.conftest import Fluster, words_of

from fluster import Cluster, LocalCluster


@pytest.fixture
def as_user(local_cluster: LocalCluster, fluster: Fluster) -> Callable[..., tuple[Cluster, str]]:
    """A client of a new user, and its token."""

    def made(name: str, *options: str) -> tuple[Cluster, str]:
        token = fluster("token", "create", "--user", name, *options).stdout.strip()
        return Cluster(local_cluster.address, token=token), token

    return made


def test_a_token_is_printed_once_and_nothing_else(fluster: Fluster) -> None:
    ran = fluster("token", "create", "--user", "anna", "--ttl", "90d")
    assert ran.code == 0
    (token,) = ran.stdout.split()
    assert token.startswith("flu_user-")
    listed = fluster("token", "list", "--json")
    (row,) = [each for each in listed.objects if each["user"] == "anna"]
    assert (row["kind"], row["namespace"], row["uses_left"]) == ("user", "anna", None)
    assert row["expires_at"] - row["created_at"] == pytest.approx(90 * 86_400)
    assert token not in listed.stdout
    assert fluster("jobs", "--json", FLUSTER_TOKEN=token).code == 0
    assert fluster("token", "list", FLUSTER_TOKEN=token).code == 4
    (made,) = fluster("token", "create", "--user", "anna", "--namespace", "team", "--json").objects
    assert sorted(made) == ["expires_at", "namespace", "token", "token_id", "user"]
    assert (made["namespace"], made["expires_at"]) == ("team", None)


def test_quotas_are_set_listed_and_taken_away(fluster: Fluster) -> None:
    quotas = ["--quota", "cpu=1.5", "--quota", "memory=2GB", "--quota", "gpus=0", "--quota", "jobs=3"]
    fluster("token", "create", "--user", "ben", *quotas)
    (row,) = [row for row in words_of(fluster("token", "list").stdout) if "ben" in row]
    assert " ".join(row).endswith("0 of 1.5 cpu, 0 B of 2 GB memory, 0 of 0 gpus, 0 of 3 jobs")
    fluster("token", "create", "--user", "ben", "--quota", "cpu=none")
    (first, second) = [each for each in fluster("token", "list", "--json").objects if each["user"] == "ben"]
    assert first["quota"] == second["quota"] == {"cpu": None, "memory_bytes": 2 * 10**9, "gpus": 0, "jobs": 3}


@pytest.mark.parametrize("quota", ["cpu", "cpu=", "cpu=x", "cpu=-1", "cpu=nan", "gpus=1.5", "cores=1", "memory=1XB"])
def test_a_quota_that_is_none_is_a_usage_error(fluster: Fluster, quota: str) -> None:
    assert fluster("token", "create", "--user", "ben", "--quota", quota).code == 2


def test_a_revoked_token_is_refused(fluster: Fluster, as_user: Callable[..., tuple[Cluster, str]]) -> None:
    client, token = as_user("cleo")
    with client:
        assert client.list_jobs() == []
        (token_id,) = [
            each["token_id"] for each in fluster("token", "list", "--json").objects if each["user"] == "cleo"
        ]
        assert token_id in token
        ran = fluster("token", "revoke", token_id)
        assert (ran.code, ran.stdout) == (0, "")
    refused = fluster("jobs", FLUSTER_TOKEN=token)
    assert (refused.code, "bearer token" in refused.stderr) == (4, True)
    assert fluster("token", "revoke", token_id).code == 3
    assert fluster("token", "revoke", "--user", "cleo").code == 3
    assert fluster("token", "revoke").code == 2
    fluster("token", "create", "--user", "cleo")
    assert "1 token is revoked" in fluster("token", "revoke", "--user", "cleo").stderr


def test_the_audit_tells_who_did_what_from_where(
    fluster: Fluster, as_user: Callable[..., tuple[Cluster, str]], local_cluster: LocalCluster
) -> None:
    client, token = as_user("dora")
    with client:
        job_id = client.submit(int, 1).job_id
        client.wait(job_id, timeout=30)
    assert fluster("token", "list", FLUSTER_TOKEN=token).code == 4
    seen = fluster("events", "--audit", "--user", "dora", "--json")

    launched, refused = seen.objects
    assert (launched["kind"], launched["job_id"], launched["actor"]) == ("JobLaunched", job_id, "user:dora")
    assert (launched["allowed"], refused["allowed"]) == (True, False)
    assert launched["peer"].startswith("127.0.0.1:")
    assert refused["message"] == "ListTokens: permission_denied: ListTokens is not for users"
    table = words_of(fluster("events", "--audit", "--user", "dora").stdout)
    assert list(table[0]) == ["TIME", "BY", "FROM", "WHAT", "JOB", "WORKER", "MESSAGE"]
    assert "refused" in table[2]
    assert [each["kind"] for each in fluster("events", job_id, "--audit", "--json").objects] == ["JobLaunched"]
    cut = fluster("events", "--audit", "--limit", "1", "--json")
    assert (len(cut.objects), "--limit 0" in cut.stderr) == (1, True)
    assert fluster("events", "--audit", FLUSTER_TOKEN=token).code == 4
    assert fluster("events").code == 2
    assert fluster("events", job_id, "--user", "dora").code == 2
    assert token not in seen.stdout
