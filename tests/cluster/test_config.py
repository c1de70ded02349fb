import stat
import tomllib
from pathlib import Path

import pytest

from fluster.cluster.config import find_cluster, find_token, load_configuration, user_config_file
from fluster.cluster.config_edit import configure_cluster, forget_cluster


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CONFIG_HOME": str(tmp_path / "xdg")}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    directory = tmp_path / "project"
    directory.mkdir()
    (directory / ".git").mkdir()
    return directory


def write_user_file(environ: dict[str, str], text: str) -> Path:
    file = user_config_file(environ)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


TWO_CLUSTERS = """
cluster = "near"
[clusters.near]
address = "127.0.0.1:7077"
token_file = "near.token"
[clusters.far]
address = "https://far.example.com:443"
"""


def test_without_any_configuration_there_is_no_cluster(environ: dict[str, str], project: Path) -> None:
    assert find_cluster(environ=environ, directory=project) is None
    assert find_token("http://h:1", environ=environ, directory=project) is None


def test_the_users_default_cluster_is_found_with_its_token_file(environ: dict[str, str], project: Path) -> None:
    file = write_user_file(environ, TWO_CLUSTERS)
    found = find_cluster(environ=environ, directory=project)
    assert found is not None
    assert (found.name, found.address, found.source) == ("near", "http://127.0.0.1:7077", str(file))
    assert found.token_file == str(file.parent / "near.token")


def test_a_cluster_is_meant_by_name_or_by_address(environ: dict[str, str], project: Path) -> None:
    write_user_file(environ, TWO_CLUSTERS)
    by_name = find_cluster("far", environ=environ, directory=project)
    by_address = find_cluster("https://far.example.com:443/", environ=environ, directory=project)
    assert by_name == by_address
    assert by_name is not None
    assert by_name.name == "far"
    other = find_cluster("10.0.0.1:7077", environ=environ, directory=project)
    assert other is not None
    assert (other.name, other.address, other.token_file) == (None, "http://10.0.0.1:7077", None)


def test_an_unknown_name_is_refused_with_the_nearest(environ: dict[str, str], project: Path) -> None:
    with pytest.raises(ValueError, match=r"no configured cluster 'naer'; none is configured, `fluster up` starts one"):
        find_cluster("naer", environ=environ, directory=project)
    write_user_file(environ, TWO_CLUSTERS)
    with pytest.raises(ValueError, match="no configured cluster 'naer'; the nearest are near"):
        find_cluster("naer", environ=environ, directory=project)


def test_argument_before_variable_before_project_before_user(environ: dict[str, str], project: Path) -> None:
    def address(cluster: str | None = None) -> str:
        found = find_cluster(cluster, environ=environ, directory=project)
        assert found is not None
        return found.address

    write_user_file(environ, TWO_CLUSTERS)
    assert address() == "http://127.0.0.1:7077"
    (project / "pyproject.toml").write_text('[tool.fluster]\ncluster = "far"\n')
    assert address() == "https://far.example.com:443"
    environ["FLUSTER_CLUSTER_ADDRESS"] = "http://variable:1"
    assert address() == "http://variable:1"
    assert address("near") == "http://127.0.0.1:7077"


def test_a_projects_other_tools_do_not_matter(environ: dict[str, str], project: Path) -> None:
    (project / "pyproject.toml").write_text('[project]\nname = "x"\n[tool.ruff]\nline-length = 100\n')
    assert find_cluster(environ=environ, directory=project) is None


def test_other_settings_come_with_the_file_that_says_them(environ: dict[str, str], project: Path) -> None:
    user = write_user_file(environ, 'namespace = "team"\nserver_python = "/opt/python"\n')
    (project / "pyproject.toml").write_text('[tool.fluster]\nnamespace = "project"\n')
    found = load_configuration(environ, project)
    assert (found.namespace, found.server_python) == ("project", "/opt/python")
    assert found.sources == {
        "namespace": str(project / "pyproject.toml"),
        "server_python": str(user),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clutser = 'x'", r"config\.toml: unknown key 'clutser'; the nearest are cluster"),
        ("cluster = 3", r"config\.toml: cluster must be a text, got 3"),
        ("cluster = ''", r"config\.toml: cluster must be a text, got ''"),
        ("clusters = 3", r"config\.toml: clusters must be a table of tables"),
        ("[clusters.a]\ntoken_file = 'x'", r"config\.toml: cluster 'a' has no address"),
        ("[clusters.a]\naddress = 'ftp://x'", "a cluster's address must be"),
        (
            "[clusters.a]\naddress = 'h:1'\ntoken = 'hush'",
            r"config\.toml: unknown key 'token'; the nearest are token_file",
        ),
        ("[clusters.'a b']\naddress = 'h:1'", r"config\.toml: a cluster's name must be"),
        ("= 3", r"config\.toml is not valid TOML: Invalid statement \(at line 1, column 1\)"),
    ],
)
def test_a_wrong_file_is_refused_naming_file_and_key(
    environ: dict[str, str], project: Path, text: str, message: str
) -> None:
    write_user_file(environ, text)
    with pytest.raises(ValueError, match=message) as caught:
        load_configuration(environ, project)
    assert "hush" not in str(caught.value)


def test_a_section_for_fluster_that_is_no_table_is_refused(environ: dict[str, str], project: Path) -> None:
    (project / "pyproject.toml").write_text("[tool]\nfluster = 3\n")
    with pytest.raises(ValueError, match=r"pyproject\.toml: a section for Fluster must be a table, got 3"):
        load_configuration(environ, project)


def test_the_token_is_the_given_one_else_the_variables_else_the_clusters(
    environ: dict[str, str], project: Path
) -> None:
    def token(given: str | None = None, address: str = "http://127.0.0.1:7077") -> str | None:
        return find_token(address, given, environ=environ, directory=project)

    file = write_user_file(environ, TWO_CLUSTERS)
    (file.parent / "near.token").write_text("from-file\n")
    assert token() == "from-file"
    assert token(address="127.0.0.1:7077") == "from-file"
    assert token(address="http://elsewhere:1") is None
    environ["FLUSTER_TOKEN"] = "from-variable"
    assert token() == "from-variable"
    assert token("given") == "given"


def test_a_given_token_of_another_form_is_refused_and_not_shown(environ: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="token does not hold a token") as caught:
        find_token("http://h:1", "hush hush", environ=environ)
    assert "hush" not in str(caught.value)


# Writing.


def test_a_written_cluster_is_the_default_and_is_found(environ: dict[str, str], project: Path, tmp_path: Path) -> None:
    file = configure_cluster("local", "127.0.0.1:7077", tmp_path / 'odd "näme"' / "token", environ=environ)
    assert file == user_config_file(environ)
    found = find_cluster(environ=environ, directory=project)
    assert found is not None
    assert (found.name, found.address) == ("local", "http://127.0.0.1:7077")
    assert found.token_file == str(tmp_path / 'odd "näme"' / "token")


def test_the_written_file_is_its_users_alone(environ: dict[str, str]) -> None:
    file = configure_cluster("local", "h:1", "/t", environ=environ)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["config.toml"]


def test_a_forgotten_cluster_is_gone_and_so_is_a_file_that_held_nothing_else(environ: dict[str, str]) -> None:
    configure_cluster("local", "h:1", "/t", environ=environ)
    assert forget_cluster("local", environ=environ)
    assert not user_config_file(environ).exists()
    assert not forget_cluster("local", environ=environ)


def test_writing_again_replaces_the_entry(environ: dict[str, str]) -> None:
    configure_cluster("local", "h:1", "/t", environ=environ)
    file = configure_cluster("local", "h:2", "/u", environ=environ)
    assert tomllib.loads(file.read_text()) == {
        "cluster": "local",
        "clusters": {"local": {"address": "http://h:2", "token_file": "/u"}},
    }


def test_what_else_the_file_says_stays_comments_included(environ: dict[str, str]) -> None:
    original = "# mine\nnamespace = 'team'  # ours\n\n[clusters.far]\naddress = 'h:9'\n# the last line\n"
    file = write_user_file(environ, original)
    configure_cluster("local", "h:1", "/t", environ=environ)
    configure_cluster("local.2", "h:2", "/t", environ=environ)
    assert set(load_configuration(environ).clusters) == {"far", "local", "local.2"}
    assert forget_cluster("local", environ=environ)
    assert forget_cluster("local.2", environ=environ)
    assert file.read_text().strip() == original.strip()


def test_forgetting_another_cluster_leaves_the_default(environ: dict[str, str], project: Path) -> None:
    write_user_file(environ, TWO_CLUSTERS)
    assert forget_cluster("far", environ=environ)
    found = find_cluster(environ=environ, directory=project)
    assert found is not None
    assert found.name == "near"


@pytest.mark.parametrize(
    "text",
    [
        "clusters = { local = { address = 'h:1' } }\n",
        "clusters.local.address = 'h:1'\n",
        "namespace = '''\n[clusters.local]\n'''\n",
    ],
)
def test_a_file_that_cannot_be_edited_safely_is_left_as_it_is(environ: dict[str, str], text: str) -> None:
    file = write_user_file(environ, text)
    with pytest.raises(ValueError, match="edit"):
        configure_cluster("local", "h:2", "/t", environ=environ)
    assert file.read_text() == text
