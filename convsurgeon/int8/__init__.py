"""int8 and fp16 versions of a graph: `steps` in memory, `quantize` as files behind a check, `module` run as a model."""
