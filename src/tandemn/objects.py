"""The object store: inputs, parts and outputs, in a folder or a bucket."""
