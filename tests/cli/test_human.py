import pytest

from fluster.cli.human import format_age, format_bytes, format_count, format_duration, format_time, parse_duration


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1 kB"),
        (1_536, "1.54 kB"),
        (999_600, "1 MB"),
        (2_000_000_000, "2 GB"),
        (2_147_483_648, "2.15 GB"),
        (16_800_000_000, "16.8 GB"),
        (3.5e12, "3.5 TB"),
        (1.2e15, "1200 TB"),
    ],
)
def test_sizes_are_written_in_the_units_in_which_memory_is_asked_for(count: float, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0 s"),
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 m 00 s"),
        (200, "3 m 20 s"),
        (3_599.4, "59 m 59 s"),
        (3_900, "1 h 05 m"),
        (183_600, "2 d 03 h"),
    ],
)
def test_durations_have_at_most_two_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_an_age_is_one_number_and_empty_where_unknown() -> None:
    assert [format_age(100.0 - ago, 100.0) for ago in (-5, 0, 59.9)] == ["0 s", "0 s", "59 s"]
    assert [format_age(0.0, now) for now in (60.0, 7_199.0, 90_000.0)] == ["1 m", "1 h", "1 d"]
    assert format_age(None, 1.0) == ""


def test_cores_lose_their_needless_zeros() -> None:
    assert [format_count(number) for number in (2.0, 0.5, 0.001, 1.25, 10)] == ["2", "0.5", "0.001", "1.25", "10"]


def test_no_time_is_an_empty_text() -> None:
    assert format_time(None) == ""
    assert len(format_time(1.7e9)) == len("2023-11-14 22:13:20")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("1.5", 1.5),
        ("30s", 30),
        ("10m", 600),
        ("10 min", 600),
        ("1h30m", 5_400),
        ("2d", 172_800),
        ("5ms", 0.005),
    ],
)
def test_a_duration_is_seconds_or_numbers_with_units(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "10x", "1h foo", "h1", "1,5s", "-5s", "0x10"])
def test_what_is_no_duration_is_refused_with_what_one_looks_like(text: str) -> None:
    with pytest.raises(ValueError, match="30s, 10m, 1h30m"):
        parse_duration(text)
