from tandemn import errors


def test_every_error_has_a_code_a_status_and_an_exit_code_of_its_own_branch():
    assert errors.NotFound("x").exit_code == 2
    assert errors.Infeasible("x").exit_code == 3
    assert errors.QueueUnavailable("x").http_status == 503


def test_next_step_is_part_of_the_text():
    assert str(errors.InvalidInput("no such file", next_step="name another")) == "no such file; name another"
