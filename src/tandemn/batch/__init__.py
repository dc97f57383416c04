"""Jobs: validate and split the input, lease the chunks, assemble the output."""
