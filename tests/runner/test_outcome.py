

def test_the_tokens_of_a_stored_answer_are_read_from_its_line():
    line = b'{"id":"x","custom_id":"a","response":{"status_code":200,"body":{"usage":{"prompt_tokens":3,"completion_tokens":5}}}}'
    assert outcome.usage_of_line(line) == outcome.Usage(prompt_tokens=3, completion_tokens=5)
    assert outcome.usage_of_line(b'{"response":null}') == outcome.NO_USAGE
