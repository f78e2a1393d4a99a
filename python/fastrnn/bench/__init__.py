"""The benchmark that ships with the package: ``fastrnn bench`` or ``python -m fastrnn.bench``."""
