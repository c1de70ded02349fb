from pathlib import Path

import pytest

from fluster.cluster.types import EnvironmentConfig, create_environment
from fluster.cluster.validation import MAX_ENV_BYTES, MAX_ENV_VARS


@pytest.fixture(autouse=True)
def no_tokens_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_an_environment_is_empty_by_default() -> None:
    made = EnvironmentConfig()
    assert (made.workspace, made.docker_image, made.pip_packages, made.extras) == (None, None, (), ())
    assert (made.env_vars, made.secrets, made.python) == ({}, {}, None)


def test_workspace_and_image_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="workspace and docker_image exclude each other"):
        EnvironmentConfig(workspace="/src", docker_image="python:3.12")


@pytest.mark.parametrize("key", ["A=B", "A\0", "", "=", "\ud800", 3, None], ids=ascii)
@pytest.mark.parametrize("what", ["env_vars", "secrets"])
def test_a_variables_name_without_equals_sign_and_nul_is_required(what: str, key: object) -> None:
    with pytest.raises(ValueError, match=f"a name in {what} must be a UTF-8 text without '=' and NUL"):
        EnvironmentConfig(**{what: {key: "x"}})  # type: ignore[arg-type]


@pytest.mark.parametrize("what", ["env_vars", "secrets"])
def test_fluster_variables_are_reserved(what: str) -> None:
    with pytest.raises(ValueError, match=r"a name in .* must be outside FLUSTER_\*"):
        EnvironmentConfig(**{what: {"FLUSTER_JOB_ID": "x"}})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["a\0b", "\ud800", 3, None, "x" * (MAX_ENV_BYTES + 1)], ids=lambda v: ascii(v)[:20])
def test_a_variables_value_must_be_a_text(value: object) -> None:
    with pytest.raises(ValueError, match=r"env_vars\['A'\] must be a UTF-8 text"):
        EnvironmentConfig(env_vars={"A": value})  # type: ignore[dict-item]


def test_a_wrong_value_is_not_shown_because_it_may_be_a_secret() -> None:
    with pytest.raises(ValueError, match="without NUL") as caught:
        EnvironmentConfig(env_vars={"A": "hush\0"})
    assert "hush" not in str(caught.value)


def test_ten_thousand_variables_are_refused() -> None:
    with pytest.raises(ValueError, match=f"env_vars must be at most {MAX_ENV_VARS} variables, got 10000"):
        EnvironmentConfig(env_vars={f"V{i}": "" for i in range(10_000)})


def test_variables_of_more_than_128_kb_in_all_are_refused() -> None:
    fits = MAX_ENV_BYTES - len("A=") - 1
    assert EnvironmentConfig(env_vars={"A": "x" * fits}).env_vars["A"]
    with pytest.raises(ValueError, match=f"env_vars must be at most {MAX_ENV_BYTES} bytes in all"):
        EnvironmentConfig(env_vars={"A": "x" * (fits + 1)})


def test_secrets_count_towards_the_same_limit() -> None:
    half = "x" * (MAX_ENV_BYTES // 2)
    with pytest.raises(ValueError, match="env_vars and secrets must be at most"):
        EnvironmentConfig(env_vars={"A": half}, secrets={"B": half})


def test_values_of_any_language_are_kept() -> None:
    given = {"GRÖSSE": "größer 長い", "EMPTY": "", "SPACED": " a\nb "}
    assert EnvironmentConfig(env_vars=given).env_vars == given


def test_a_later_change_of_the_given_mapping_changes_nothing() -> None:
    given = {"A": "1"}
    made = EnvironmentConfig(env_vars=given)
    given["FLUSTER_JOB_ID"] = "x"
    assert made.env_vars == {"A": "1"}


@pytest.mark.parametrize("given", ["numpy", ["--index-url=http://evil"], [" -r x"], ["a\nb"], [""], [3], ["p"] * 1001])
def test_packages_are_a_sequence_of_requirements_and_no_options(given: object) -> None:
    with pytest.raises(ValueError, match="pip_packages"):
        EnvironmentConfig(pip_packages=given)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", ["tpu", ["a b"], ["-x"], ["x]"], [""], [3]])
def test_extras_are_a_sequence_of_names(given: object) -> None:
    with pytest.raises(ValueError, match="extras"):
        EnvironmentConfig(extras=given)  # type: ignore[arg-type]


def test_packages_and_extras_are_kept() -> None:
    made = EnvironmentConfig(pip_packages=["numpy>=2", "jax[tpu]"], extras=["gpu"])
    assert (made.pip_packages, made.extras) == (("numpy>=2", "jax[tpu]"), ("gpu",))


@pytest.mark.parametrize("given", ["3.12", "3.11.4", "/usr/bin/python3", "~/venv/bin/python", "./python"])
def test_python_is_a_version_or_a_path(given: str) -> None:
    assert EnvironmentConfig(python=given).python == given


@pytest.mark.parametrize("given", ["", "three", "3", "python3", "3.12\n", "/a\0b", 3.12, "/" * 5000])
def test_any_other_python_is_refused(given: object) -> None:
    with pytest.raises(ValueError, match="python must be"):
        EnvironmentConfig(python=given)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", ["", "a b", "-v", "x" * 513, "ü", 3])
def test_an_image_name_is_one_printable_word(given: object) -> None:
    with pytest.raises(ValueError, match="docker_image must be"):
        EnvironmentConfig(docker_image=given)  # type: ignore[arg-type]


def test_secrets_and_what_looks_like_one_do_not_show_in_a_repr() -> None:
    made = EnvironmentConfig(env_vars={"HF_TOKEN": "hush1", "MODE": "fast"}, secrets={"ANY": "hush2"})
    assert repr(made) == "EnvironmentConfig(env_vars={'HF_TOKEN': '***', 'MODE': 'fast'}, secrets={'ANY': '***'})"


# create_environment.


def test_the_defaults_of_the_field_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    assert create_environment(workspace="/src").env_vars == {"TOKENIZERS_PARALLELISM": "false"}
    monkeypatch.setenv("HF_TOKEN", "h")
    monkeypatch.setenv("WANDB_API_KEY", "w")
    made = create_environment(workspace="/src")
    assert made.env_vars == {"TOKENIZERS_PARALLELISM": "false", "HF_TOKEN": "h", "WANDB_API_KEY": "w"}


def test_what_is_given_wins_over_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "from here")
    made = create_environment(
        workspace="/src", env_vars={"TOKENIZERS_PARALLELISM": "true"}, secrets={"HF_TOKEN": "given"}
    )
    assert made.env_vars == {"TOKENIZERS_PARALLELISM": "true"}
    assert made.secrets == {"HF_TOKEN": "given"}


def test_the_workspace_is_the_project_around_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "src").mkdir()
    monkeypatch.chdir(tmp_path / "src")
    assert create_environment().workspace == str(tmp_path.resolve())


def test_outside_of_a_project_or_with_an_image_there_is_no_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)
    assert create_environment().workspace is None
    (tmp_path / "pyproject.toml").touch()
    assert create_environment(docker_image="python:3.12").workspace is None


def test_everything_else_is_passed_on() -> None:
    made = create_environment("/src", pip_packages=["a"], extras=["b"], python="3.12")
    assert (made.workspace, made.pip_packages, made.extras, made.python) == ("/src", ("a",), ("b",), "3.12")
