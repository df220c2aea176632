"""What a network is calibrated on: images that are given, or made up.

`files` reads them with `arrays` and `depth`, `calibration` batches them, `feeding` as the model takes them, `suspicion`
says what looks wrong. Where none are given `synthetic` makes them up: `drawing`, `scale`, `restoring`, `norms`,
`inversion`. `gather` takes whichever it is.
"""
