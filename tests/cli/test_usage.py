"""What is refused before anything is asked of a cluster."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fluster.cli import main
from fluster.cli.app import ROOT
from fluster.cli.run import default_name


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one or two lines on stderr of a usage error."""
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert 1 <= len(captured.err.splitlines()) <= 2
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--lr", "3", "--", "python", "train.py"],
        ["run", "python", "train.py", "--lr", "3"],
        ["run", "-x", "--", "true"],
        ["run", "--detach", "python", "-m", "train"],
        ["jobs", "--lr"],
        ["status", "job", "--lr"],
        ["logs", "-q", "job"],
        ["up", "--lr"],
        ["controller", "serve", "--lr"],
        ["worker", "serve", "--controller", "localhost:1", "--lr"],
        ["--lr", "jobs"],
    ],
)
def test_an_unknown_flag_is_a_usage_error_and_never_part_of_a_command(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    flag = next(word for word in words if word in ("--lr", "-x", "-q", "-m"))
    assert flag in refused(words, capsys)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["run"], "CMD"),
        (["run", "--"], "CMD"),
        (["run", "echo", "--", "hi"], "'echo'"),
        (["run", "--cpu", "-1", "--", "true"], "cpu"),
        (["run", "--cpu", "nan", "--", "true"], "cpu"),
        (["run", "--cpu", "inf", "--", "true"], "cpu"),
        (["run", "--memory", "0", "--", "true"], "memory"),
        (["run", "--memory", "lots", "--", "true"], "memory"),
        (["run", "--replicas", "0", "--", "true"], "replicas"),
        (["run", "--timeout", "0", "--", "true"], "duration"),
        (["run", "--timeout", "nan", "--", "true"], "duration"),
        (["run", "--timeout", "soon", "--", "true"], "duration"),
        (["run", "--priority", "urgent", "--", "true"], "priority"),
        (["run", "--name", "../x", "--", "true"], "without '..'"),
        (["run", "--name", "", "--", "true"], "name"),
        (["run", "--env", "=x", "--", "true"], "NAME=VALUE"),
        (["run", "--env", "NOT_SET_HERE", "--", "true"], "NOT_SET_HERE"),
        (["run", "--env", "FLUSTER_JOB_ID=1", "--", "true"], "FLUSTER_"),
        (["run", "--tpu", "v5lightpod-16", "--", "true"], "v5litepod-16"),
        (["run", "--gpu", "A10O", "--", "true"], "A10"),
        (["run", "--gpu", "A100:many", "--", "true"], "A100:2"),
        (["run", "--gpu", "1", "--tpu", "v5litepod-16", "--", "true"], "exclude"),
        (["run", "--", ""], "program"),
        (["jobs", "--status", "dead"], "succeeded"),
        (["jobs", "--limit", "-1"], "--limit"),
        (["jobs", "--cluster", "no-such-cluster"], "no-such-cluster"),
        (["jobs", "--cluster", "host:port"], "http://host:port"),
        (["logs", "job", "--tail", "-1"], "--tail"),
        (["wait", "job", "--timeout", "-5"], "duration"),
        (["worker", "token", "--uses", "0"], "--uses"),
        (["up", "--backend", "docker", "--mount", "data"], "absolute"),
        (["up", "--python", "python3"], "absolute"),
        (["up", "--backend", "docker", "--mount", "/data:/etc"], "would hide"),
        (["worker", "serve", "--controller", "localhost:1", "--mount", "/data:/x:rw"], "DIR:DIR_IN_CONTAINERS:ro"),
        (["worker", "serve"], "--controller"),
        (["worker", "serve", "--controller", "localhost:1", "--gpus", "some"], "auto"),
        (["worker", "serve", "--controller", "localhost:1", "--token-file", "/no/such/file"], "/no/such/file"),
        (["controller", "serve", "--port", "65536"], "65535"),
        (["controller", "serve", "--insecure-plaintext-network", "--worker-certificates"], "exclude each other"),
        (["up", "--cluster", "../x"], "name"),
        (["up", "--cluster", "http://localhost:1"], "name"),
        (["jbos"], "jobs"),
        (["config", "edit"], "show"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_can(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert named in refused(words, capsys)


def test_a_configuration_file_that_is_wrong_is_a_usage_error_naming_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "fluster").mkdir()
    (tmp_path / "fluster/config.toml").write_text("cluster = [")
    assert str(tmp_path) in refused(["jobs"], capsys)


@pytest.mark.parametrize(
    "words",
    [
        *(["jobs"], ["status", "job"], ["logs", "job"], ["wait", "job"], ["stop", "job"], ["why", "job"]),
        *(["events", "job"], ["workers"], ["endpoints"], ["worker", "token"], ["run", "--detach", "--", "true"]),
    ],
    ids=" ".join,
)
def test_without_a_cluster_a_command_ends_with_5_and_names_both_ways_to_one(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 5
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert "`fluster up`" in captured.err
    assert "--cluster" in captured.err


@pytest.mark.parametrize("words", [["jobs"], ["logs", "job", "-f"], ["run", "--", "true"], ["worker", "token"]])
def test_a_dead_address_ends_with_5_and_one_line_and_no_cluster_is_started(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Port 1 needs root to listen on, and nobody does.
    split = words.index("--") if "--" in words else len(words)
    assert main([*words[:split], "--cluster", "127.0.0.1:1", *words[split:]]) == 5
    assert capsys.readouterr().err == "fluster: cannot reach http://127.0.0.1:1: Connection refused\n"
    monkeypatch.setenv("FLUSTER_CLUSTER_ADDRESS", "127.0.0.1:1")
    assert main(words) == 5
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert "FLUSTER_CLUSTER_ADDRESS" in said[1]


def test_a_token_of_no_form_is_refused_and_not_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLUSTER_TOKEN", "two words")
    assert "two words" not in refused(["jobs", "--cluster", "127.0.0.1:1"], capsys)


def test_help_is_on_stdout_and_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(
        name in shown
        for name in [
            "run",
            "jobs",
            "status",
            "logs",
            "wait",
            "stop",
            "why",
            "events",
            "workers",
            "endpoints",
            "up",
            "down",
        ]
    )


@pytest.mark.parametrize("name", ROOT.list_commands(None))  # type: ignore[arg-type]
def test_every_command_loads_and_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert "Usage: fluster" in capsys.readouterr().out


def test_no_command_is_a_usage_error_that_shows_the_help_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "run" in captured.err


def test_the_version_is_the_distributions(capsys: pytest.CaptureFixture[str]) -> None:
    from fluster import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fluster {__version__}\n"


def test_help_loads_neither_rpc_nor_rich() -> None:
    code = (
        "import sys, fluster.cli; fluster.cli.main(['--help'])\n"
        "print([m for m in ('protobuf', 'cloudpickle', 'rich', 'asyncio', 'http.client') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True).stdout
    assert shown.splitlines()[-1] == "[]"


def test_config_show_without_configuration_says_so_in_both_forms(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show"]) == 0
    assert "`fluster up`" in capsys.readouterr().out
    assert main(["config", "show", "--json"]) == 0
    settings = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert settings["cluster"]["source"] == ""


def test_config_show_names_who_says_what_and_no_token(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLUSTER_CLUSTER_ADDRESS", "somewhere:7077")
    monkeypatch.setenv("FLUSTER_TOKEN", "fla_secret")
    assert main(["config", "show", "--json"]) == 0
    shown = capsys.readouterr().out
    assert "fla_secret" not in shown
    settings = {each["name"]: (each["value"], each["source"]) for each in json.loads(shown)}
    assert settings["address"] == ("http://somewhere:7077", "FLUSTER_CLUSTER_ADDRESS")
    assert settings["token"] == ("(set)", "FLUSTER_TOKEN")


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (("python", "train.py", "--lr", "3"), "train"),
        (("/usr/bin/python3.12", "dir/train_it.py"), "train_it"),
        (("python3", "-m", "http.server"), "python3"),
        (("./sweep.sh",), "sweep.sh"),
        (("/bin/echo", "x"), "echo"),
        (("..",), "job"),
        (("a b*c",), "abc"),
        (("x" * 200,), "x" * 128),
    ],
)
def test_a_job_is_named_after_its_program(command: tuple[str, ...], name: str) -> None:
    assert default_name(command) == name
