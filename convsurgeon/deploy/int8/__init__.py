"""int8 and fp16 versions of a file: ranges from calibration data, channels evened out, each behind a check."""
