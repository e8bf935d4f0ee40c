from alpa_serve.report.plain_table import plain_table


def test_numbers_are_aligned_to_the_right_and_lines_have_no_trailing_blanks():
    lines = plain_table(["name", "#count"], [["a", "1"], ["long name", "1000"]]).splitlines()
    assert [line.rstrip() for line in lines] == lines
    assert [line.split()[-1] for line in lines[2:]] == ["1", "1000"]
    assert len({len(line) for line in lines[2:]}) == 1


def test_what_is_in_a_cell_is_shown_as_it_is():
    assert "[red]:smile:[/red]" in plain_table(["name"], [["[red]:smile:[/red]"]])
