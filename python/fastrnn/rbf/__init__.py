"""The parts of radial-basis-function networks; the estimators are in `fastrnn.rbfn`."""
